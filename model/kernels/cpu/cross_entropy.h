// Cross-entropy through the head in float32, with its gradients.
//
// For each token: nats = log(sum of e^logits) - logits[label], logits = x matrixᵀ. Logits exist for CHUNK
// tokens of each thread at a time.
//
// Layout. x [tokens, width], matrix [vocabulary, width], labels [tokens], logits [tokens of a group,
// vocabulary]. Width and vocabulary are multiples of COLUMNS.

#pragma once

#include "products.h"

struct Head {
  int64_t tokens, width, vocabulary;
};

// The inputs; a token with a negative label is not scored.
struct Scored {
  const float *x, *matrix;
  const int64_t* labels;
};

namespace {

// Turns the logits of one token into their gradient times `sum`: e^(logit - largest), less `sum` at the
// label. Returns the nats of the label.
float score(float* logits, int64_t vocabulary, int64_t label, float& sum) {
  constexpr float LOG2_E = 1.44269504f;
  Lanes most = load(logits);
  for (int64_t j = LANES; j < vocabulary; j += LANES) {
    const Lanes x = load(logits + j);
    most = x > most ? x : most;
  }
  const float largest = largest_of(most), own = logits[label];
  const Lanes shift = spread(largest * LOG2_E);
  Lanes total{};
  for (int64_t j = 0; j < vocabulary; j += LANES) {
    const Lanes weight = power_of_two(load(logits + j) * LOG2_E - shift);
    store(logits + j, weight);
    total += weight;
  }
  sum = sum_of(total);
  logits[label] -= sum;
  return std::log(sum) + (largest - own);
}

// Scores the tokens [start, start + n) of a group that begins at token `first`. Writes their nats and, unless
// it is null, the gradient by x. For the gradient by the matrix it leaves the logits' gradients times `sum`,
// and in `scaled` x / sum, so that the product of the two is right.
void score_chunk(
    const Head& head, const Scored& given, const Panels& forward, const Panels& backward, int64_t first,
    int64_t start, int64_t n, float* logits, const Paneled& scaled, float* nats, float* grad_x) {
  const int64_t width = head.width, vocabulary = head.vocabulary, token = first + start;
  const float* x = given.x + token * width;
  float factors[CHUNK];
  logits += start * vocabulary;
  product(n, x, width, forward, logits, vocabulary, false);
  for (int64_t i = 0; i < n; i++) {
    const int64_t label = given.labels[token + i];
    const float own = score(logits + i * vocabulary, vocabulary, std::max<int64_t>(label, 0), factors[i]);
    nats[token + i] = label < 0 ? 0 : own;
    factors[i] = label < 0 ? 0 : 1 / factors[i];
  }
  if (!grad_x) return;
  float* to = grad_x + token * width;
  product(n, logits, vocabulary, backward, to, width, false);
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < width; d += LANES) {
      store(to + i * width + d, load(to + i * width + d) * factors[i]);
      store(scaled.at(start + i, d), load(x + i * width + d) * factors[i]);
    }
}

}  // namespace
