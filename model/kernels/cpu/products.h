// Products of whole matrices, of which one lies in panels of COLUMNS columns.

#pragma once

#include "tiles.h"

namespace {

constexpr int64_t CHUNK = 96;   // tokens that go through the block's parts together, a multiple of ROWS
constexpr int64_t DEPTH = 512;  // of a product at once: fewer would load and store its numbers more often

// A weight [out, in] in panels, for x Wᵀ (forward) or for y W (backward).
struct Panels {
  int64_t depth, columns;
  bool transposed;
  float* data;
  Panels(int64_t in, int64_t out, bool backward, Arena& arena)
      : depth(backward ? out : in),
        columns(backward ? in : out),
        transposed(!backward),
        data(arena.take(in * out)) {}

  // To be called by all threads of a team; finished at its next barrier.
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

// c[n, columns] = (c +) a[n, depth] times the panels.
void product(int64_t n, const float* a, int64_t a_row, const Panels& b, float* c, int64_t c_row, bool add) {
  for (int64_t k = 0; k < b.depth; k += DEPTH)
    for (int64_t j = 0; j < b.columns; j += COLUMNS)
      for (int64_t i = 0; i < n; i += ROWS)
        rows(
            std::min(ROWS, n - i), std::min(DEPTH, b.depth - k), {a + i * a_row + k, a_row, 1},
            b.data + j * b.depth + k * COLUMNS, COLUMNS, c + i * c_row + j, c_row, add || k > 0);
}

// A matrix [tokens, channels] in panels of COLUMNS channels.
struct Paneled {
  float* data;
  int64_t tokens;
  float* at(int64_t token, int64_t channel) const {
    return data + (channel / COLUMNS * tokens + token) * COLUMNS + channel % COLUMNS;
  }
};

// One thread of a team, and its share of n things.
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

// Ranges of at most CHUNK tokens, their number a multiple of the threads', of nearly equal length: some may
// be empty.
struct Chunks {
  int64_t tokens, tiles, count;
  Chunks(int64_t tokens_, int64_t threads)
      : tokens(tokens_),
        tiles(up(tokens, ROWS) / ROWS),
        count(up(up(tiles * ROWS, CHUNK) / CHUNK, threads)) {}
  int64_t start(int64_t i) const { return std::min(tokens, tiles * i / count * ROWS); }
  int64_t length(int64_t i) const { return start(i + 1) - start(i); }
};

// The first m columns of a matrix, ROWS numbers apart.
void gather(const float* from, int64_t from_row, int64_t length, int64_t m, float* to) {
  if (m == ROWS)
    for (int64_t k = 0; k < length; k++)
      std::memcpy(to + k * ROWS, from + k * from_row, ROWS * sizeof(float));
  else
    for (int64_t k = 0; k < length; k++) std::copy_n(from + k * from_row, m, to + k * ROWS);
}

// c[out, in] = (c +) yᵀ x over n tokens, y [n, out], x [n, in]: this member's share of c's rows. A number is
// summed in the order of the tokens, whatever the team. There are tiles of CHUNK rows in `tiles`.
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
