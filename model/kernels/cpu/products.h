// Products of whole matrices, and how the threads of a team share them.
//
// `product` computes x W' or y W for a chunk of tokens, W a weight copied into panels. `outer` computes a
// weight's gradient y' x, the sum over tokens of outer products. Tokens are rows: [tokens][channels].

#pragma once

#include "tiles.h"

namespace {

// Tokens that one thread takes through a block's parts together: a multiple of ROWS, so that only the last
// tile is cut, and few enough that their streams and hidden channels (96 x 5 d floats, 480 KiB at d = 256)
// stay in a second-level cache.
constexpr int64_t CHUNK = 96;
// Terms of a product that are added before its tile is stored. A panel of that depth is 64 KiB with AVX-512,
// 32 KiB with AVX2; a smaller depth would load and store the sums more often.
constexpr int64_t DEPTH = 512;

// A weight [out, in] in panels of COLUMNS columns: of Wᵀ for x Wᵀ (forward), of W for y W (backward).
struct Panels {
  int64_t depth, columns;
  bool transposed;
  float* data;
  Panels(int64_t in, int64_t out, bool backward, Arena& arena)
      : depth(backward ? out : in),
        columns(backward ? in : out),
        transposed(!backward),
        data(arena.take(in * out)) {}

  // Every thread of the team calls this; the panels are complete after the team's next barrier.
  void fill(const float* weight) const {
#pragma omp for schedule(static) nowait
    for (int64_t start = 0; start < columns; start += COLUMNS) {
      float* to = data + start * depth;
      if (transposed)
        pack(weight + start * depth, depth, COLUMNS, depth, to);
      else
        copy(weight + start, columns, depth, COLUMNS, to);
    }
  }
};

// c[n, columns] = a[n, depth] times the panels, on top of what c holds if `add`.
void product(int64_t n, const float* a, int64_t a_row, const Panels& b, float* c, int64_t c_row, bool add) {
  for (int64_t k = 0; k < b.depth; k += DEPTH)
    for (int64_t j = 0; j < b.columns; j += COLUMNS)
      for (int64_t i = 0; i < n; i += ROWS)
        rows(
            std::min(ROWS, n - i), std::min(DEPTH, b.depth - k), {a + i * a_row + k, a_row, 1},
            b.data + j * b.depth + k * COLUMNS, COLUMNS, c + i * c_row + j, c_row, add || k > 0);
}

// A matrix [tokens, channels] in panels of COLUMNS channels: [channels / COLUMNS][tokens][COLUMNS].
struct Paneled {
  float* data;
  int64_t tokens;
  float* at(int64_t token, int64_t channel) const {
    return data + (channel / COLUMNS * tokens + token) * COLUMNS + channel % COLUMNS;
  }
};

// One thread of a team; its share of n items is [first(n), end(n)).
struct Member {
  int64_t index, of;
  int64_t first(int64_t n) const { return n * index / of; }
  int64_t end(int64_t n) const { return n * (index + 1) / of; }
  void wait() const {
    if (of > 1) {
#pragma omp barrier
    }
  }
};

// Splits tokens into ranges of at most CHUNK, of nearly equal length, whose number is a multiple of the
// number of threads. Ranges may be empty.
struct Chunks {
  int64_t tokens, tiles, count;
  Chunks(int64_t tokens_, int64_t threads)
      : tokens(tokens_),
        tiles(up(tokens, ROWS) / ROWS),
        count(up(up(tiles * ROWS, CHUNK) / CHUNK, threads)) {}
  int64_t start(int64_t i) const { return std::min(tokens, tiles * i / count * ROWS); }
  int64_t length(int64_t i) const { return start(i + 1) - start(i); }
};

// Copies the first m columns of a matrix [length, ...] to rows that are ROWS numbers apart.
void gather(const float* from, int64_t from_row, int64_t length, int64_t m, float* to) {
  if (m == ROWS)
    for (int64_t k = 0; k < length; k++)
      std::memcpy(to + k * ROWS, from + k * from_row, ROWS * sizeof(float));
  else
    for (int64_t k = 0; k < length; k++) std::copy_n(from + k * from_row, m, to + k * ROWS);
}

// This member's rows of c[out, in] = yᵀ x, the sum over n tokens of y [n, out] and x [n, in], on top of what
// c holds if `add`. Tokens are added in order, for any size of the team. `tiles` is scratch: DEPTH x CHUNK
// floats.
void outer(
    const Member& member, float* tiles, int64_t n, const float* y, int64_t out, int64_t y_row,
    const Paneled& x, int64_t in, float* c, bool add) {
  const int64_t count = up(out, ROWS) / ROWS, first = member.first(count) * ROWS;
  const int64_t last = std::min(out, member.end(count) * ROWS);
  for (int64_t t = 0; t < n; t += DEPTH) {
    const int64_t depth = std::min(DEPTH, n - t);
    for (int64_t start = first; start < last; start += CHUNK) {
      const int64_t end = std::min(start + CHUNK, last);
      for (int64_t i = start; i < end; i += ROWS)
        gather(y + t * y_row + i, y_row, depth, std::min(ROWS, end - i), tiles + (i - start) * DEPTH);
      for (int64_t j = 0; j < in; j += COLUMNS)
        for (int64_t i = start; i < end; i += ROWS)
          rows(
              std::min(ROWS, end - i), depth, {tiles + (i - start) * DEPTH, 1, ROWS}, x.at(t, j), COLUMNS,
              c + i * in + j, in, add || t > 0);
    }
  }
}

}  // namespace
