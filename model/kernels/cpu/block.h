// The transformer block in float32, forward and backward.
//
//   u = norm(x, norm_1);  q, k = norm(rotate(u Wqᵀ)), norm(rotate(u Wkᵀ)) per head;
//   v = u Wvᵀ + 2 sigmoid(u[:gate_channels] Wgᵀ) rows;  y = x + attention(q, k, v) Wmᵀ;
//   out = y + relu(norm(y, norm_2) Wfᵀ)² / 2 Wpᵀ.
//
// Chunks of CHUNK tokens go through all that lies between two attentions, and groups of sequences through the
// block, so that intermediate results stay in the second-level cache. The threads of a team share chunks,
// then heads, then rows of the weights' gradients, with a barrier between.
//
// Layout. The stream is [batch, length, d], d = heads x dim. Queries, keys and values of a token lie side by
// side: [batch, length, (heads + 2 kv_heads) x dim]. All of d, dim and hidden, and gate_channels, are
// multiples of COLUMNS.

#pragma once

#include "attention.h"
#include "products.h"

struct Sizes {
  int64_t batch, length, heads, kv_heads, dim, hidden, gate_channels;
  float eps;
  int64_t tokens() const { return batch * length; }
  int64_t width() const { return heads * dim; }
  int64_t kv_width() const { return kv_heads * dim; }
  int64_t projected() const { return width() + 2 * kv_width(); }
  int64_t rotated_heads() const { return heads + kv_heads; }
  Shape attention() const { return {batch, heads, kv_heads, length, dim}; }
  // Heads from `first` on in projections, where queries come before keys and values.
  Tensor heads_of(float* projections, int64_t first) const {
    return {projections + first * dim, length * projected(), dim, projected()};
  }
  Tensor queries(float* projections) const { return heads_of(projections, 0); }
  Tensor keys(float* projections) const { return heads_of(projections, heads); }
  Tensor values(float* projections) const { return heads_of(projections, rotated_heads()); }
  Tensor merged(float* data) const { return {data, length * width(), dim, width()}; }
};

// The weights of one block or their gradients, matrices [out, in]; gate is null where the layer has none.
// Python passes them as an array of pointers in the order of the fields of BlockWeights in interface.py. No
// code checks that the two orders agree, so change both.
struct Weights {
  float *norm_1, *query, *key, *value, *merge, *norm_2, *fc, *proj, *gate;
  struct Part {
    float* numbers;
    int64_t length;
    bool matrix;
  };
  std::array<Part, 9> parts(const Sizes& s) const {
    const int64_t width = s.width(), kv = width * s.kv_width(), wide = width * s.hidden;
    return {
        {{norm_1, width, false},
         {query, width * width, true},
         {key, kv, true},
         {value, kv, true},
         {merge, width * width, true},
         {norm_2, width, false},
         {fc, wide, true},
         {proj, wide, true},
         {gate, gate ? s.kv_heads * s.gate_channels : 0, true}}};
  }
  // Weights of the same sizes from an arena, the matrices only if asked for.
  Weights like(const Sizes& s, bool matrices, Arena& arena) const {
    const auto each = parts(s);
    const auto next = [&](int i) { return arena.take(each[i].matrix && !matrices ? 0 : each[i].length); };
    return {next(0), next(1), next(2), next(3), next(4), next(5), next(6), next(7), gate ? next(8) : nullptr};
  }
};

// The inputs: the stream x [batch, length, d], cos and sin of the angles [length, dim / 2, 2] and the rows of
// the value-embedding table [batch, length, kv_heads x dim], null without a gate.
struct Given {
  const float *x, *rope, *rows;
  Given from(const Sizes& s, int64_t token) const {
    return {x + token * s.width(), rope, rows ? rows + token * s.kv_width() : nullptr};
  }
};

// What the forward pass keeps for the backward pass, B = batch, L = length, H and KV = heads and kv_heads:
//   projections  [B, L, d + 2 KV dim]  queries and keys, rotated and normed, and values
//   inverses     [B, L, H + KV]        inverse norms of queries and keys
//   gates        [B, L, KV]            2 sigmoid(...)
//   attended     [B, L, d]             results of attention
//   logs         [B, H, L]             log2 of the softmax denominators
//   middle       [B, L, d]             the stream after attention, y
//   positive     [B, L, hidden]        relu of the MLP's hidden channels
struct Kept {
  float *projections, *inverses, *gates, *attended, *logs, *middle, *positive;
  Kept(const Sizes& s, int64_t tokens, Arena& arena)
      : projections(arena.take(tokens * s.projected())),
        inverses(arena.take(tokens * s.rotated_heads())),
        gates(arena.take(tokens * s.kv_heads)),
        attended(arena.take(tokens * s.width())),
        logs(arena.take(tokens * s.heads)),
        middle(arena.take(tokens * s.width())),
        positive(arena.take(tokens * s.hidden)) {}
  Kept from(const Sizes& s, int64_t token) const {
    Kept later = *this;
    later.projections += token * s.projected();
    later.inverses += token * s.rotated_heads();
    later.gates += token * s.kv_heads;
    later.attended += token * s.width();
    later.logs += token * s.heads;
    later.middle += token * s.width();
    later.positive += token * s.hidden;
    return later;
  }
};

namespace {

struct AllPanels {
  Panels query, key, value, merge, fc, proj;
  AllPanels(const Sizes& s, bool backward, Arena& arena)
      : query(s.width(), s.width(), backward, arena),
        key(s.width(), s.kv_width(), backward, arena),
        value(s.width(), s.kv_width(), backward, arena),
        merge(s.width(), s.width(), backward, arena),
        fc(s.width(), s.hidden, backward, arena),
        proj(s.hidden, s.width(), backward, arena) {}
  void fill(const Weights& w) const {
    query.fill(w.query);
    key.fill(w.key);
    value.fill(w.value);
    merge.fill(w.merge);
    fc.fill(w.fc);
    proj.fill(w.proj);
  }
};

// What the backward pass makes: gradients of the kept arrays (of a gate, before its sigmoid), and the inputs
// of the matrices in panels, for the gradients of these.
struct Made {
  float *projections, *gates, *attended, *middle, *hidden;
  Paneled normed_1, normed_2, merged, activated;
  Made(const Sizes& s, int64_t tokens, Arena& arena)
      : projections(arena.take(tokens * s.projected())),
        gates(arena.take(tokens * s.kv_heads)),
        attended(arena.take(tokens * s.width())),
        middle(arena.take(tokens * s.width())),
        hidden(arena.take(tokens * s.hidden)),
        normed_1{arena.take(tokens * s.width()), tokens},
        normed_2{arena.take(tokens * s.width()), tokens},
        merged{arena.take(tokens * s.width()), tokens},
        activated{arena.take(tokens * s.hidden), tokens} {}
};

float inverse_rms(const float* x, int64_t width, float eps) {
  return 1.0f / std::sqrt(dot(x, x, width) / static_cast<float>(width) + eps);
}

void norm(const float* x, const float* weight, int64_t width, float eps, float* y) {
  const Lanes inverse = spread(inverse_rms(x, width, eps));
  for (int64_t d = 0; d < width; d += LANES) store(y + d, load(x + d) * inverse * load(weight + d));
}

// to = passed + the gradient by x, given that by norm(x). Also writes norm(x) to `normed` and adds to the
// gradient of the weight.
void norm_backward(
    const float* x, const float* weight, const float* grad, const float* passed, int64_t width, float eps,
    float* to, const Paneled& normed, int64_t token, float* grad_weight) {
  const float inverse = inverse_rms(x, width, eps);
  Lanes sum{};
  for (int64_t d = 0; d < width; d += LANES) {
    const Lanes unit = load(x + d) * inverse, w = load(weight + d), g = load(grad + d);
    store(normed.at(token, d), unit * w);
    store(grad_weight + d, load(grad_weight + d) + g * unit);
    sum += g * unit * w;
  }
  const float mean = sum_of(sum) / static_cast<float>(width);
  for (int64_t d = 0; d < width; d += LANES) {
    const Lanes unit = load(x + d) * inverse;
    store(to + d, load(passed + d) + (load(grad + d) * load(weight + d) - unit * mean) * inverse);
  }
}

// Rotates the pairs (2i, 2i + 1) of x by angles given as cos and sin; sign -1 rotates back.
Lanes rotated(Lanes x, Lanes angles, float sign) {
  Whole swap{}, even{}, odd{};
  Lanes signs{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    swap[i] = i ^ 1, even[i] = i & ~1, odd[i] = i | 1, signs[i] = i % 2 ? sign : -sign;
  return x * __builtin_shuffle(angles, even) +
         __builtin_shuffle(x, swap) * __builtin_shuffle(angles, odd) * signs;
}

// Rotates and norms a head in place; returns the inverse norm.
float rotate_and_norm(float* x, const float* angles, int64_t dim) {
  const float inverse = inverse_rms(x, dim, 1.1920929e-7f);  // torch's default eps: FLT_EPSILON
  for (int64_t d = 0; d < dim; d += LANES) store(x + d, rotated(load(x + d), load(angles + d), 1) * inverse);
  return inverse;
}

// Turns the gradient by y, a head rotated and normed, into that by the head, in place.
void rotate_and_norm_backward(float* grad, const float* y, float inverse, const float* angles, int64_t dim) {
  const float mean = dot(grad, y, dim) / static_cast<float>(dim);
  for (int64_t d = 0; d < dim; d += LANES)
    store(grad + d, rotated((load(grad + d) - load(y + d) * mean) * inverse, load(angles + d), -1));
}

float gate_of(const float* x, const float* weight, int64_t channels) {
  float sum = 0;
  for (int64_t i = 0; i < channels; i++) sum += x[i] * weight[i];
  return 2 / (1 + std::exp(-sum));
}

// Adds the gated rows of one token to its values; writes the gates.
void add_rows(
    const Sizes& s, const float* x, const float* weight, const float* rows, float* value, float* gates) {
  for (int64_t h = 0; h < s.kv_heads; h++) {
    gates[h] = gate_of(x, weight + h * s.gate_channels, s.gate_channels);
    for (int64_t d = h * s.dim; d < (h + 1) * s.dim; d++) value[d] += gates[h] * rows[d];
  }
}

// Writes the gradients by rows and gates of one token and adds that by the normed stream.
void add_rows_backward(
    const Sizes& s, const float* weight, const float* rows, const float* grad_value, const float* gates,
    float* grad_rows, float* grad_gates, float* grad_x) {
  for (int64_t h = 0; h < s.kv_heads; h++) {
    const int64_t at = h * s.dim;
    for (int64_t d = at; d < at + s.dim; d++) grad_rows[d] = gates[h] * grad_value[d];
    grad_gates[h] = dot(grad_value + at, rows + at, s.dim) * gates[h] * (1 - gates[h] / 2);
    for (int64_t i = 0; i < s.gate_channels; i++)
      grad_x[i] += grad_gates[h] * weight[h * s.gate_channels + i];
  }
}

// The part before attention, for the n tokens of a chunk: norm, projections, rotation, gated rows.
void project(
    const Sizes& s, const Weights& w, const AllPanels& panels, const Given& given, const Kept& kept,
    int64_t start, int64_t n, float* normed) {
  const int64_t width = s.width(), kv = s.kv_width(), row = s.projected();
  float* to = kept.projections + start * row;
  for (int64_t i = 0; i < n; i++)
    norm(given.x + (start + i) * width, w.norm_1, width, s.eps, normed + i * width);
  product(n, normed, width, panels.query, to, row, false);
  product(n, normed, width, panels.key, to + width, row, false);
  product(n, normed, width, panels.value, to + width + kv, row, false);
  for (int64_t i = 0; i < n; i++) {
    const int64_t token = start + i;
    float* token_to = to + i * row;
    const float* angles = given.rope + token % s.length * s.dim;
    for (int64_t h = 0; h < s.rotated_heads(); h++)
      kept.inverses[token * s.rotated_heads() + h] = rotate_and_norm(token_to + h * s.dim, angles, s.dim);
    if (w.gate)
      add_rows(
          s, normed + i * width, w.gate, given.rows + token * kv, token_to + width + kv,
          kept.gates + token * s.kv_heads);
  }
}

// The part after attention, for the n tokens of a chunk. `middle` may be `out`, and `positive` null.
void finish(
    const Sizes& s, const Weights& w, const AllPanels& panels, const float* x, const float* attended,
    float* middle, float* positive, float* out, int64_t n, float* normed, float* hidden) {
  const int64_t width = s.width();
  std::copy_n(x, n * width, middle);
  product(n, attended, width, panels.merge, middle, width, true);
  for (int64_t i = 0; i < n; i++) norm(middle + i * width, w.norm_2, width, s.eps, normed + i * width);
  product(n, normed, width, panels.fc, hidden, s.hidden, false);
  for (int64_t i = 0; i < n * s.hidden; i += LANES) {
    const Lanes h = load(hidden + i), above = h < 0 ? Lanes{} : h;  // NaN stays NaN
    if (positive) store(positive + i, above);
    store(hidden + i, 0.5f * above * above);
  }
  if (out != middle) std::copy_n(middle, n * width, out);
  product(n, hidden, s.hidden, panels.proj, out, width, true);
}

// Scratch memory of one thread in the forward pass.
struct Scratch {
  float *normed, *hidden;
  Forward attention;
  Scratch(const Sizes& s, Arena& arena)
      : normed(arena.take(CHUNK * s.width())),
        hidden(arena.take(CHUNK * s.hidden)),
        attention(s.attention(), arena) {}
};

// The block for some sequences; every member of the team calls it. Without `keep`, `out` may be the stream
// itself, and `middle` and `positive` of `kept` are not written. There is no barrier at the end: `project` of
// the next group writes nothing that `finish` reads.
void forward_group(
    const Sizes& s, int64_t sequences, const Weights& w, const AllPanels& panels, const Given& given,
    const Kept& kept, bool keep, float* out, const Scratch& own, const Member& member) {
  const Chunks chunks(sequences * s.length, member.of);
  for (int64_t i = member.first(chunks.count); i < member.end(chunks.count); i++)
    project(s, w, panels, given, kept, chunks.start(i), chunks.length(i), own.normed);
  member.wait();
  const int64_t heads = sequences * s.kv_heads;
  for (int64_t i = member.first(heads); i < member.end(heads); i++)
    attend(
        s.attention(), i / s.kv_heads, i % s.kv_heads, s.queries(kept.projections), s.keys(kept.projections),
        s.values(kept.projections), s.merged(kept.attended), kept.logs, own.attention);
  member.wait();
  for (int64_t i = member.first(chunks.count); i < member.end(chunks.count); i++) {
    const int64_t start = chunks.start(i), at = start * s.width();
    finish(
        s, w, panels, given.x + at, kept.attended + at, keep ? kept.middle + at : out + at,
        keep ? kept.positive + start * s.hidden : nullptr, out + at, chunks.length(i), own.normed,
        own.hidden);
  }
}

// Backward through `finish`: from the gradient by a chunk's output to that by its attention results.
void finish_backward(
    const Sizes& s, const Weights& w, const AllPanels& panels, const Kept& kept, const float* grad,
    const Made& made, int64_t start, int64_t n, float* scratch, float* grad_norm) {
  const int64_t width = s.width(), at = start * width, row = s.hidden;
  float* hidden = made.hidden + start * row;
  product(n, grad + at, width, panels.proj, hidden, row, false);
  for (int64_t i = 0; i < n; i++) {
    const int64_t wide = (start + i) * s.hidden;
    for (int64_t j = 0; j < s.hidden; j += LANES) {
      const Lanes positive = load(kept.positive + wide + j);
      store(hidden + i * row + j, load(hidden + i * row + j) * positive);
      store(made.activated.at(start + i, j), 0.5f * positive * positive);
    }
  }
  product(n, hidden, row, panels.fc, scratch, width, false);
  for (int64_t i = 0; i < n; i++) {
    const int64_t token = at + i * width;
    norm_backward(
        kept.middle + token, w.norm_2, scratch + i * width, grad + token, width, s.eps, made.middle + token,
        made.normed_2, start + i, grad_norm);
    for (int64_t d = 0; d < width; d += LANES)
      store(made.merged.at(start + i, d), load(kept.attended + token + d));
  }
  product(n, made.middle + at, width, panels.merge, made.attended + at, width, false);
}

// Backward through `project`: from the gradients by a chunk's projections to that by the stream.
void project_backward(
    const Sizes& s, const Weights& w, const AllPanels& panels, const Given& given, const Kept& kept,
    const Made& made, float* grad_x, float* grad_rows, int64_t start, int64_t n, float* scratch,
    float* grad_norm) {
  const int64_t width = s.width(), kv = s.kv_width(), row = s.projected();
  float* grads = made.projections + start * row;
  for (int64_t i = 0; i < n; i++)
    for (int64_t h = 0; h < s.rotated_heads(); h++) {
      const int64_t token = start + i, head = token * s.rotated_heads() + h;
      rotate_and_norm_backward(
          grads + i * row + h * s.dim, kept.projections + token * row + h * s.dim, kept.inverses[head],
          given.rope + token % s.length * s.dim, s.dim);
    }
  product(n, grads, row, panels.query, scratch, width, false);
  product(n, grads + width, row, panels.key, scratch, width, true);
  product(n, grads + width + kv, row, panels.value, scratch, width, true);
  for (int64_t i = 0; i < n; i++) {
    const int64_t token = start + i, at = token * width;
    if (w.gate)
      add_rows_backward(
          s, w.gate, given.rows + token * kv, grads + i * row + width + kv, kept.gates + token * s.kv_heads,
          grad_rows + token * kv, made.gates + token * s.kv_heads, scratch + i * width);
    norm_backward(
        given.x + at, w.norm_1, scratch + i * width, made.middle + at, width, s.eps, grad_x + at,
        made.normed_1, token, grad_norm);
  }
}

// Gradients of the matrices after attention, on top of what `to` holds if `add`.
void finish_outer(
    const Sizes& s, const Member& member, float* tiles, const float* grad, const Made& made,
    const Weights& to, int64_t n, bool add) {
  const int64_t width = s.width();
  outer(member, tiles, n, grad, width, width, made.activated, s.hidden, to.proj, add);
  outer(member, tiles, n, made.hidden, s.hidden, s.hidden, made.normed_2, width, to.fc, add);
  outer(member, tiles, n, made.middle, width, width, made.merged, width, to.merge, add);
}

// Gradients of the matrices before attention.
void project_outer(
    const Sizes& s, const Member& member, float* tiles, const Made& made, const Weights& to, int64_t n,
    bool add) {
  const int64_t width = s.width(), kv = s.kv_width(), row = s.projected();
  const float* grads = made.projections;
  outer(member, tiles, n, grads, width, row, made.normed_1, width, to.query, add);
  outer(member, tiles, n, grads + width, kv, row, made.normed_1, width, to.key, add);
  outer(member, tiles, n, grads + width + kv, kv, row, made.normed_1, width, to.value, add);
  if (to.gate)
    outer(member, tiles, n, made.gates, s.kv_heads, s.kv_heads, made.normed_1, s.gate_channels, to.gate, add);
}

// Scratch memory of one thread in the backward pass.
struct BackwardScratch {
  float *stream, *tiles;
  Backward attention;
  BackwardScratch(const Sizes& s, Arena& arena)
      : stream(arena.take(CHUNK * s.width())),
        tiles(arena.take(DEPTH * CHUNK)),
        attention(s.attention(), arena) {}
};

// Backward through the block for some sequences; every member of the team calls it, and all share `made`.
// Gradients of the matrices go to `to`, on top of what it holds if `add`; those of the norms are added to the
// member's own. There is no barrier at the end: `finish_backward` of the next group writes nothing that
// `project_outer` reads.
void backward_group(
    const Sizes& s, int64_t sequences, const Weights& w, const AllPanels& panels, const Given& given,
    const Kept& kept, const Made& made, const float* grad, float* grad_x, float* grad_rows, const Weights& to,
    bool add, float* norm_1, float* norm_2, const BackwardScratch& own, const Member& member) {
  const int64_t tokens = sequences * s.length, heads = sequences * s.kv_heads;
  const Chunks chunks(tokens, member.of);
  const int64_t first = member.first(chunks.count), end = member.end(chunks.count);
  for (int64_t i = first; i < end; i++)
    finish_backward(s, w, panels, kept, grad, made, chunks.start(i), chunks.length(i), own.stream, norm_2);
  member.wait();
  finish_outer(s, member, own.tiles, grad, made, to, tokens, add);
  for (int64_t i = member.first(heads); i < member.end(heads); i++)
    attend_backward(
        s.attention(), i / s.kv_heads, i % s.kv_heads, s.queries(kept.projections), s.keys(kept.projections),
        s.values(kept.projections), s.merged(kept.attended), s.merged(made.attended), kept.logs,
        s.queries(made.projections), s.keys(made.projections), s.values(made.projections), own.attention);
  member.wait();
  for (int64_t i = first; i < end; i++)
    project_backward(
        s, w, panels, given, kept, made, grad_x, grad_rows, chunks.start(i), chunks.length(i), own.stream,
        norm_1);
  member.wait();
  project_outer(s, member, own.tiles, made, to, tokens, add);
}

}  // namespace
