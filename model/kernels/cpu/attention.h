// Causal attention in float32, forward and backward, for heads of a multiple of COLUMNS channels.
//
// For each head: out = softmax(q kᵀ / sqrt(dim)) v, where query i attends to keys 0 to i. Scores exist for
// one block of queries at a time, and only for keys up to the block's last query. One thread works on all
// queries of a key/value head. The forward pass stores log2 of each softmax denominator; the backward pass
// computes the weights anew from it (Dao et al. 2022, FlashAttention).
//
// Layout. Queries, keys, values and results are tensors [batch, heads, length, dim] of any stride but the
// last. Scores are [block][row()], row() numbers from one query to the next.

#pragma once

#include "tiles.h"

struct Shape {
  int64_t batch, heads, kv_heads, length, dim;
  int64_t padded() const { return up(length, COLUMNS); }
  // From one row of scores to the next: an odd number of panels, so that a column uses all sets of a cache.
  int64_t row() const { return (padded() / COLUMNS | 1) * COLUMNS; }
  // Queries at once: scores of 24,576 numbers (96 KiB, beside keys and values in a second-level cache), but 2
  // to 16 tiles.
  int64_t block() const { return std::clamp<int64_t>(24576 / length / ROWS * ROWS, 2 * ROWS, 16 * ROWS); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
  float scale_two() const { return scale() * 1.44269504f; }  // for powers of two: e^x = 2^(x / ln 2)
};

// A tensor [batch, heads, length, dim] by its strides; the last dimension is contiguous.
struct Tensor {
  float* data;
  int64_t batch, head, row;
  float* at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

namespace {

// Products of the queries [start, end), whose rows are q, with the packed keys that the last of them sees. A
// key is left out for tiles of queries that all come before it.
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

// x in lanes 0 to n - 1, `other` in the rest.
Lanes leading(Lanes x, int64_t n, float other) {
  Whole lane{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) lane[i] = i;
  return lane < static_cast<int32_t>(n) ? x : spread(other);
}

// Turns the scores of m queries into weights 2^(score - largest) that are not yet divided by their sum. The
// first query sees `seen` keys, each later one a key more; beyond its keys a query's weights are 0, up to the
// end of the last query's. Writes the sums of the weights and, in `logs`, log2 of the sum of e^score.
void weigh(float* scores, int64_t row, int64_t m, int64_t seen, float scale, float* sums, float* logs) {
  const int64_t end = seen + m - 1;
  float shifts[ROWS];
  for (int64_t r = 0; r < m; r++) {
    const float* own = scores + r * row;
    const int64_t last = (seen + r - 1) / LANES * LANES;
    Lanes most = leading(load(own + last), seen + r - last, -INFINITY);
    for (int64_t j = 0; j < last; j += LANES) {
      const Lanes x = load(own + j);
      most = x > most ? x : most;
    }
    shifts[r] = largest_of(most) * scale;
  }
  for (int64_t r = 0; r < m; r++) {
    float* own = scores + r * row;
    const int64_t last = (seen + r - 1) / LANES * LANES;
    const Lanes shift = spread(shifts[r]);
    Lanes sum = leading(power_of_two(load(own + last) * scale - shift), seen + r - last, 0);
    store(own + last, sum);
    for (int64_t j = last + LANES; j < end; j += LANES) store(own + j, Lanes{});
    for (int64_t j = 0; j < last; j += LANES) {
      const Lanes weight = power_of_two(load(own + j) * scale - shift);
      store(own + j, weight);
      sum += weight;
    }
    sums[r] = sum_of(sum);
  }
  for (int64_t r = 0; r < m; r++) logs[r] = shifts[r] + std::log2(sums[r]);
}

// Turns the first `seen` scores of a row into weights that sum to 1, and the gradients of the weights into
// those of the scores; both are 0 from there to `end`. `mean` is the weighted mean of the gradients.
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

// Scratch memory of one thread for one key/value head: packed keys and values, and the scores of a block of
// queries.
struct Forward {
  float *keys, *values, *scores;
  Forward(const Shape& s, Arena& arena)
      : keys(arena.take(s.padded() * s.dim)),
        values(arena.take(s.length * s.dim)),
        scores(arena.take(s.block() * s.row())) {}
};

// The same for the backward pass: k, q and g are contiguous keys, queries and result gradients, p and ds
// weights and score gradients of a block of queries, dk and dv the sums of the keys' and values' gradients.
struct Backward {
  float *keys, *values, *k, *q, *g, *p, *ds, *dk, *dv;
  Backward(const Shape& s, Arena& arena)
      : keys(arena.take(s.padded() * s.dim)),
        values(arena.take(s.padded() * s.dim)),
        k(arena.take(s.length * s.dim)),
        q(arena.take(s.block() * s.dim)),
        g(arena.take(s.block() * s.dim)),
        p(arena.take(s.block() * s.row())),
        ds(arena.take(s.block() * s.row())),
        dk(arena.take(s.length * s.dim)),
        dv(arena.take(s.length * s.dim)) {}
};

// Writes the results of all queries of one key/value head and, for the backward pass, log2 of the sum of
// e^score of each query, `logs` [batch, heads, length].
void attend(
    const Shape& shape, int64_t b, int64_t kv, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, float* logs, const Forward& space) {
  const auto [batch, heads, kv_heads, length, dim] = shape;
  const int64_t row = shape.row(), group = heads / kv_heads, block = shape.block();
  const float scale = shape.scale_two();
  const auto [keys, values, scores] = space;
  pack(key.at(b, kv), key.row, length, dim, keys);
  copy(value.at(b, kv), value.row, length, dim, values);
  for (int64_t h = kv * group; h < (kv + 1) * group; h++)
    for (int64_t start = 0; start < length; start += block) {
      const int64_t end = std::min(start + block, length);
      scores_of(keys, query.at(b, h) + start * query.row, query.row, start, end, shape, scores);
      for (int64_t i = start; i < end; i += ROWS) {
        const int64_t m = std::min(ROWS, end - i);
        float *first = scores + (i - start) * row, *to = out.at(b, h) + i * out.row;
        float* log = logs + (b * heads + h) * length + i;
        float total[ROWS];
        weigh(first, row, m, i + 1, scale, total, log);
        for (int64_t d = 0; d < dim; d += COLUMNS)
          rows(m, i + m, {first, row, 1}, values + d, dim, to + d, out.row, false);
        for (int64_t r = 0; r < m; r++) scale_row(to + r * out.row, dim, 1.0f / total[r]);
      }
    }
}

// Writes the gradients of one key/value head and of its queries; `out` is the result, `grad` its gradient.
void attend_backward(
    const Shape& shape, int64_t b, int64_t kv, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& grad, const float* logs, const Tensor& grad_query,
    const Tensor& grad_key, const Tensor& grad_value, const Backward& space) {
  const auto [batch, heads, kv_heads, length, dim] = shape;
  const int64_t row = shape.row(), group = heads / kv_heads, block = shape.block();
  const float scale_two = shape.scale_two(), scale = shape.scale();
  const auto [keys, values, k, q, g, p, ds, dk, dv] = space;
  pack(key.at(b, kv), key.row, length, dim, keys);
  pack(value.at(b, kv), value.row, length, dim, values);
  copy(key.at(b, kv), key.row, length, dim, k);
  std::fill_n(dk, length * dim, 0.0f);
  std::fill_n(dv, length * dim, 0.0f);
  for (int64_t h = kv * group; h < (kv + 1) * group; h++)
    for (int64_t start = 0; start < length; start += block) {
      const int64_t end = std::min(start + block, length);
      copy(query.at(b, h) + start * query.row, query.row, end - start, dim, q);
      copy(grad.at(b, h) + start * grad.row, grad.row, end - start, dim, g);
      scores_of(keys, q, dim, start, end, shape, p);
      scores_of(values, g, dim, start, end, shape, ds);
      for (int64_t i = start; i < end; i++) {
        const float mean = dot(g + (i - start) * dim, out.at(b, h) + i * out.row, dim);
        const int64_t at = (i - start) * row;
        differentiate(p + at, ds + at, i + 1, end, scale_two, logs[(b * heads + h) * length + i], mean);
      }
      for (int64_t i = start; i < end; i += ROWS) {
        const int64_t m = std::min(ROWS, end - i);
        float* to = grad_query.at(b, h) + i * grad_query.row;
        for (int64_t d = 0; d < dim; d += COLUMNS)
          rows(m, i + m, {ds + (i - start) * row, row, 1}, k + d, dim, to + d, grad_query.row, false);
        for (int64_t r = 0; r < m; r++) scale_row(to + r * grad_query.row, dim, scale);
      }
      for (int64_t j = 0; j < end; j += ROWS) {
        // Only queries from the key on see it.
        const int64_t first = std::max(start, j) - start, m = std::min(ROWS, end - j);
        const int64_t at = first * row + j, depth = end - start - first;
        for (int64_t d = 0; d < dim; d += COLUMNS) {
          rows(m, depth, {ds + at, 1, row}, q + first * dim + d, dim, dk + j * dim + d, dim, true);
          rows(m, depth, {p + at, 1, row}, g + first * dim + d, dim, dv + j * dim + d, dim, true);
        }
      }
    }
  for (int64_t i = 0; i < length; i++) {
    for (int64_t d = 0; d < dim; d++) grad_key.at(b, kv)[i * grad_key.row + d] = dk[i * dim + d] * scale;
    std::copy_n(dv + i * dim, dim, grad_value.at(b, kv) + i * grad_value.row);
  }
}

}  // namespace
