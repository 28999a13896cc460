// Causal attention in float32 on a CPU, forward and backward, for heads of a multiple of COLUMNS channels.
//
// Scores exist for a few queries at a time and only for keys that a query sees. Every product is made of
// tiles of ROWS x COLUMNS numbers that stay in registers. One thread works on all queries of a key/value
// head, so that a sequence's result depends neither on its neighbours nor on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
constexpr int64_t ROWS = 6, COLUMNS = 2 * LANES;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Whole __attribute__((vector_size(LANES * sizeof(int32_t))));

Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
void store(float* to, Lanes x) { *reinterpret_cast<Lanes*>(to) = x; }
Lanes spread(float x) { return x - Lanes{}; }

float sum_of(Lanes x) {
  float sum = 0;
  for (int64_t i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

float largest_of(Lanes x) {
  float largest = x[0];
  for (int64_t i = 1; i < LANES; i++) largest = std::max(largest, x[i]);
  return largest;
}

// 2^x with a relative error of about 2e-7, x at most 127; 2^-126 where x is less than -126. Not a number stays
// one.
Lanes power_of_two(Lanes x) {
  const Lanes least = spread(-126.0f), shift = spread(12582912.0f);  // 1.5 * 2^23 rounds to whole numbers
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

// A matrix in memory, its element (i, j) at data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

// c[m, n] = (c[m, n] +) sum over k of a[m, k] b[k, n], for m < M, n < COLUMNS; rows of b and c are
// contiguous.
template <int M>
void tile(int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  Lanes sum[M][2];
#pragma GCC unroll 6
  for (int m = 0; m < M; m++) {
    sum[m][0] = add ? load(c + m * c_row) : Lanes{};
    sum[m][1] = add ? load(c + m * c_row + LANES) : Lanes{};
  }
  for (int64_t k = 0; k < depth; k++) {
    const Lanes left = load(b), right = load(b + LANES);
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
      const Lanes x = spread(a.data[m * a.row + k * a.column]);
      sum[m][0] += x * left;
      sum[m][1] += x * right;
    }
    b += b_row;
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; m++) {
    store(c + m * c_row, sum[m][0]);
    store(c + m * c_row + LANES, sum[m][1]);
  }
}

void rows(
    int64_t m, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  switch (m) {
    case 6: return tile<6>(depth, a, b, b_row, c, c_row, add);
    case 5: return tile<5>(depth, a, b, b_row, c, c_row, add);
    case 4: return tile<4>(depth, a, b, b_row, c, c_row, add);
    case 3: return tile<3>(depth, a, b, b_row, c, c_row, add);
    case 2: return tile<2>(depth, a, b, b_row, c, c_row, add);
    case 1: return tile<1>(depth, a, b, b_row, c, c_row, add);
  }
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// From where interleaving takes its numbers: lane `first` of one row, of the other, the lanes after, and so
// on.
Whole interleaving(int first) {
  Whole from{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) from[i] = first + i / 2 + i % 2 * LANES;
  return from;
}

// Transposes LANES x LANES numbers: interleaves the upper with the lower half of the rows, log2(LANES) times.
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

// Rows of one head [length][dim], transposed into panels of COLUMNS of them: [length /
// COLUMNS][dim][COLUMNS]. What is beyond the last row is 0.
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

// Rows of one head, one after the other: strides of a power of two would share few sets of a cache.
void copy(const float* from, int64_t from_row, int64_t length, int64_t dim, float* to) {
  for (int64_t i = 0; i < length; i++) std::copy_n(from + i * from_row, dim, to + i * dim);
}

}  // namespace

struct Shape {
  int64_t batch, heads, kv_heads, length, dim;
  int64_t padded() const { return up(length, COLUMNS); }
  // Between rows of scores: an odd number of vectors, so that a column of them uses all sets of a cache.
  int64_t row() const { return (padded() / COLUMNS | 1) * COLUMNS; }
  int64_t block() const { return std::clamp<int64_t>(12288 / length / ROWS * ROWS, 2 * ROWS, 16 * ROWS); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
  float scale_two() const { return scale() * 1.44269504f; }  // e^x = 2^(x / ln 2)
};

// A tensor [batch, heads, length, dim] by its strides; the last dimension is contiguous.
struct Tensor {
  float* data;
  int64_t batch, head, row;
  float* at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

namespace {

// Products of the queries [start, end), of which q holds the rows, with all packed keys that one of them
// sees.
void scores_of(
    const float* panels, const float* q, int64_t q_row, int64_t start, int64_t end, const Shape& shape,
    float* out) {
  const int64_t row = shape.row();
  for (int64_t key = 0; key < end; key += COLUMNS, panels += shape.dim * COLUMNS)
    for (int64_t i = std::max<int64_t>(0, key - start) / ROWS * ROWS; i < end - start; i += ROWS)
      rows(
          std::min(ROWS, end - start - i), shape.dim, {q + i * q_row, q_row, 1}, panels, COLUMNS,
          out + i * row + key, row, false);
}

// Turns the first `seen` scores of a row into weights, up to a common factor; what follows becomes 0 up to
// `end`. Gives the sum of the weights, and in `log` log2 of the sum of e^score.
float weigh(float* row, int64_t seen, int64_t end, float scale, float& log) {
  const int64_t whole = up(seen, LANES);
  std::fill(row + seen, row + whole, -INFINITY);
  Lanes most = load(row);
  for (int64_t j = LANES; j < whole; j += LANES) {
    const Lanes x = load(row + j);
    most = x > most ? x : most;
  }
  const float shift = largest_of(most) * scale;
  Lanes sum{};
  for (int64_t j = 0; j < whole; j += LANES) {
    const Lanes weight = power_of_two(load(row + j) * scale - shift);
    store(row + j, weight);
    sum += weight;
  }
  std::fill(row + seen, row + end, 0.0f);
  log = shift + std::log2(sum_of(sum));
  return sum_of(sum);
}

// Turns the first `seen` scores of a row into weights, which sum to 1, and the gradients of the weights into
// those of the scores; what follows becomes 0 up to `end`. `mean` is the weighted mean of the gradients.
void differentiate(float* row, float* slopes, int64_t seen, int64_t end, float scale, float log, float mean) {
  for (int64_t j = 0; j < seen; j += LANES) {
    const Lanes weight = power_of_two(load(row + j) * scale - log);
    store(row + j, weight);
    store(slopes + j, weight * (load(slopes + j) - mean));
  }
  std::fill(row + seen, row + end, 0.0f);
  std::fill(slopes + seen, slopes + end, 0.0f);
}

float dot(const float* a, const float* b, int64_t dim) {
  Lanes sum{};
  for (int64_t d = 0; d < dim; d += LANES) sum += load(a + d) * load(b + d);
  return sum_of(sum);
}

void scale_row(float* row, int64_t dim, float factor) {
  for (int64_t d = 0; d < dim; d++) row[d] *= factor;
}

}  // namespace

extern "C" int64_t attention_channels() { return COLUMNS; }

// Writes the result and, for the backward pass, log2 sum exp of each query's scores [batch, heads, length].
extern "C" void attention_forward(
    const Shape* given, const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* out,
    float* logs, int threads) {
  const Shape shape = *given;
  const auto [batch, heads, kv_heads, length, dim] = shape;
  const int64_t row = shape.row(), group = heads / kv_heads, block = shape.block();
  const float scale = shape.scale_two();
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> keys(shape.padded() * dim), values(length * dim), scores(block * row);
#pragma omp for collapse(2)
    for (int64_t b = 0; b < batch; b++)
      for (int64_t kv = 0; kv < kv_heads; kv++) {
        pack(key->at(b, kv), key->row, length, dim, keys.data());
        copy(value->at(b, kv), value->row, length, dim, values.data());
        for (int64_t h = kv * group; h < (kv + 1) * group; h++)
          for (int64_t start = 0; start < length; start += block) {
            const int64_t end = std::min(start + block, length);
            scores_of(
                keys.data(), query->at(b, h) + start * query->row, query->row, start, end, shape,
                scores.data());
            for (int64_t i = start; i < end; i += ROWS) {
              const int64_t m = std::min(ROWS, end - i);
              float *first = scores.data() + (i - start) * row, *to = out->at(b, h) + i * out->row;
              float* log = logs + (b * heads + h) * length + i;
              float total[ROWS];
              for (int64_t r = 0; r < m; r++)
                total[r] = weigh(first + r * row, i + r + 1, i + m, scale, log[r]);
              for (int64_t d = 0; d < dim; d += COLUMNS)
                rows(m, i + m, {first, row, 1}, values.data() + d, dim, to + d, out->row, false);
              for (int64_t r = 0; r < m; r++) scale_row(to + r * out->row, dim, 1.0f / total[r]);
            }
          }
      }
  }
}

// Writes the gradients of query, key and value; grad and out are the result's gradient and the result.
extern "C" void attention_backward(
    const Shape* given, const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* out,
    const Tensor* grad, const float* logs, const Tensor* grad_query, const Tensor* grad_key,
    const Tensor* grad_value, int threads) {
  const Shape shape = *given;
  const auto [batch, heads, kv_heads, length, dim] = shape;
  const int64_t row = shape.row(), group = heads / kv_heads, block = shape.block();
  const float scale_two = shape.scale_two(), scale = shape.scale();
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> keys(shape.padded() * dim), values(shape.padded() * dim), k(length * dim);
    std::vector<float> q(block * dim), g(block * dim), p(block * row), ds(block * row);
    std::vector<float> dk(length * dim), dv(length * dim);
#pragma omp for collapse(2)
    for (int64_t b = 0; b < batch; b++)
      for (int64_t kv = 0; kv < kv_heads; kv++) {
        pack(key->at(b, kv), key->row, length, dim, keys.data());
        pack(value->at(b, kv), value->row, length, dim, values.data());
        copy(key->at(b, kv), key->row, length, dim, k.data());
        std::fill(dk.begin(), dk.end(), 0.0f);
        std::fill(dv.begin(), dv.end(), 0.0f);
        for (int64_t h = kv * group; h < (kv + 1) * group; h++)
          for (int64_t start = 0; start < length; start += block) {
            const int64_t end = std::min(start + block, length);
            copy(query->at(b, h) + start * query->row, query->row, end - start, dim, q.data());
            copy(grad->at(b, h) + start * grad->row, grad->row, end - start, dim, g.data());
            scores_of(keys.data(), q.data(), dim, start, end, shape, p.data());
            scores_of(values.data(), g.data(), dim, start, end, shape, ds.data());
            for (int64_t i = start; i < end; i++) {
              const float mean = dot(g.data() + (i - start) * dim, out->at(b, h) + i * out->row, dim);
              const int64_t at = (i - start) * row;
              differentiate(
                  p.data() + at, ds.data() + at, i + 1, end, scale_two, logs[(b * heads + h) * length + i],
                  mean);
            }
            for (int64_t i = start; i < end; i += ROWS) {
              const int64_t m = std::min(ROWS, end - i);
              float* to = grad_query->at(b, h) + i * grad_query->row;
              for (int64_t d = 0; d < dim; d += COLUMNS)
                rows(
                    m, i + m, {ds.data() + (i - start) * row, row, 1}, k.data() + d, dim, to + d,
                    grad_query->row, false);
              for (int64_t r = 0; r < m; r++) scale_row(to + r * grad_query->row, dim, scale);
            }
            for (int64_t j = 0; j < end; j += ROWS) {
              // Queries before a key do not see it.
              const int64_t first = std::max(start, j) - start, m = std::min(ROWS, end - j);
              for (int64_t d = 0; d < dim; d += COLUMNS) {
                const int64_t from = first * dim + d, to = j * dim + d, depth = end - start - first;
                rows(
                    m, depth, {ds.data() + first * row + j, 1, row}, q.data() + from, dim, dk.data() + to,
                    dim, true);
                rows(
                    m, depth, {p.data() + first * row + j, 1, row}, g.data() + from, dim, dv.data() + to, dim,
                    true);
              }
            }
          }
        for (float& x : dk) x *= scale;
        for (int64_t i = 0; i < length; i++) {
          std::copy_n(dk.data() + i * dim, dim, grad_key->at(b, kv) + i * grad_key->row);
          std::copy_n(dv.data() + i * dim, dim, grad_value->at(b, kv) + i * grad_value->row);
        }
      }
  }
}
