// Vectors, tile products and scratch memory: what the other kernels are made of.
//
// A tile is ROWS x COLUMNS numbers of a product C = A B that stay in registers while the terms are added.
// Every number of C is summed over k in ascending order, in any tile. A row of C therefore depends neither on
// the rows beside it nor on the number of threads.
//
// Layout. B lies in panels of COLUMNS columns, [columns / COLUMNS][depth][COLUMNS], so that a tile reads it
// front to back. A and C may have any stride between rows. All sizes that vectors run over are multiples of
// COLUMNS; Python checks that before it calls.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

// LANES floats are one vector register. A tile is two vectors wide: one number of A, broadcast, then feeds
// two multiply-adds. Its ROWS are as many as registers allow. AVX-512 has 32: 12 x 2 sums, 2 for B, 1 for A.
// AVX2 has 16: 6 x 2 sums, 2 for B, 1 for A. Both are more sums than the 8 to 10 multiply-adds in flight.
// HALF_VECTORS are for sizes that the tiles of AVX-512 do not divide.
#if defined(__AVX512F__) && !defined(HALF_VECTORS)
constexpr int64_t LANES = 16, ROWS = 12;
#else
constexpr int64_t LANES = 8, ROWS = 6;
#endif
constexpr int64_t COLUMNS = 2 * LANES;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Whole __attribute__((vector_size(LANES * sizeof(int32_t))));

Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
void store(float* to, Lanes x) { *reinterpret_cast<Lanes*>(to) = x; }
Lanes spread(float x) { return x - Lanes{}; }

// Swaps the halves of every group of 2 * `half` lanes.
template <int half>
Lanes exchanged(Lanes x) {
  Whole from{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) from[i] = i ^ half;
  return __builtin_shuffle(x, from);
}

template <int half = LANES / 2>
float sum_of(Lanes x) {
  x += exchanged<half>(x);
  if constexpr (half > 1) return sum_of<half / 2>(x);
  return x[0];
}

template <int half = LANES / 2>
float largest_of(Lanes x) {
  const Lanes other = exchanged<half>(x);
  x = x > other ? x : other;
  if constexpr (half > 1) return largest_of<half / 2>(x);
  return x[0];
}

// 2^x for x <= 127, with a relative error of about 2e-7; 2^-126 for x below -126; NaN for NaN. x is split
// into a whole number n, which goes into the exponent, and r in [-1/2, 1/2], for 2^r by its Taylor series.
Lanes power_of_two(Lanes x) {
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
  const Lanes least = spread(-126.0f), shift = spread(12582912.0f);
  x = x < least ? least : x;
  const Lanes shifted = x + shift;
  const Lanes r = x - (shifted - shift);
  Lanes p = spread(1.5403530e-4f);  // ln(2)^n / n!
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  Whole exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// A matrix by its strides: element (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

// One tile: c[m, n] = sum over k < depth of a[m, k] b[k, n] for m < M and n < COLUMNS, on top of what c holds
// if `add`. Rows of b and c are contiguous.
template <int M>
void tile(int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  Lanes sum[M][2];
#pragma GCC unroll 12
  for (int m = 0; m < M; m++) {
    sum[m][0] = add ? load(c + m * c_row) : Lanes{};
    sum[m][1] = add ? load(c + m * c_row + LANES) : Lanes{};
  }
  for (int64_t k = 0; k < depth; k++) {
    const Lanes left = load(b), right = load(b + LANES);
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
      const Lanes x = spread(a.data[m * a.row + k * a.column]);
      sum[m][0] += x * left;
      sum[m][1] += x * right;
    }
    b += b_row;
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; m++) {
    store(c + m * c_row, sum[m][0]);
    store(c + m * c_row + LANES, sum[m][1]);
  }
}

// A tile of m <= ROWS rows, m known at run time.
template <int M = ROWS>
void rows(
    int64_t m, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  if (m == M) return tile<M>(depth, a, b, b_row, c, c_row, add);
  if constexpr (M > 1) rows<M - 1>(m, depth, a, b, b_row, c, c_row, add);
}

// n rounded up to a multiple of `to`.
int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Asks for pages of 2 MiB, which cause fewer misses of the address cache. Memory that holds no such page
// stays as it is.
void in_large_pages(float* data, int64_t floats) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t last = reinterpret_cast<uintptr_t>(data + floats) / PAGE * PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Memory that a thread keeps from call to call and that only grows; `of` returns null if there is none.
class Space {
 public:
  Space() = default;
  Space(const Space&) = delete;
  ~Space() { std::free(data_); }
  float* of(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      data_ = static_cast<float*>(std::aligned_alloc(1 << 21, up(floats, 1 << 19) * sizeof(float)));
      size_ = data_ ? floats : 0;
      in_large_pages(data_, size_);
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// Hands out arrays from one piece of memory, each from the start of a cache line (16 floats). Without memory
// (`data` null) it counts in `used` how many floats are needed.
struct Arena {
  float* data;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* from = data ? data + used : nullptr;
    used += up(floats, 16);
    return from;
  }
};

// The shuffle that interleaves two vectors from lane `first` on: a[first], b[first], a[first + 1], ...
Whole interleaving(int first) {
  Whole from{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) from[i] = first + i / 2 + i % 2 * LANES;
  return from;
}

// Transposes LANES x LANES numbers: the upper and the lower half of the rows are interleaved log2(LANES)
// times.
void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  const Whole low = interleaving(0), high = interleaving(LANES / 2);
  Lanes x[LANES], y[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) x[i] = load(from + i * from_row);
#pragma GCC unroll 4
  for (int done = 1; done < LANES; done *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; i++) {
      y[2 * i] = __builtin_shuffle(x[i], x[i + LANES / 2], low);
      y[2 * i + 1] = __builtin_shuffle(x[i], x[i + LANES / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = y[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) store(to + i * to_row, x[i]);
}

// Transposes rows [length][dim] into panels of COLUMNS rows: [length / COLUMNS][dim][COLUMNS], the last panel
// padded. The padding is not written: nothing reads the products that it enters.
void pack(const float* from, int64_t from_row, int64_t length, int64_t dim, float* panels) {
  for (int64_t start = 0; start < length; start += LANES) {
    float* to = panels + start / COLUMNS * COLUMNS * dim + start % COLUMNS;
    const float* rows = from + start * from_row;
    if (start + LANES <= length) {
      for (int64_t d = 0; d < dim; d += LANES) transpose(rows + d, from_row, to + d * COLUMNS, COLUMNS);
    } else {
      for (int64_t i = 0; i < length - start; i++)
        for (int64_t d = 0; d < dim; d++) to[d * COLUMNS + i] = rows[i * from_row + d];
    }
  }
}

// Copies rows [length][dim] to be contiguous: at strides of a power of two they would share few cache sets.
void copy(const float* from, int64_t from_row, int64_t length, int64_t dim, float* to) {
  for (int64_t i = 0; i < length; i++) std::copy_n(from + i * from_row, dim, to + i * dim);
}

}  // namespace
