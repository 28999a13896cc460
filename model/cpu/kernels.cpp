// What Python calls: causal attention, and the transformer block.

#include <omp.h>

#include "block.h"

namespace {

// Builds what consists of arrays in a space that is as large as they are together.
template <class Build>
auto in(Space& space, Build build) {
  Arena needed{nullptr};
  build(needed);
  Arena arena{space.of(needed.used)};
  return build(arena);
}

// How many sequences go through the block together: some 512 tokens, and chunks and heads for all threads.
int64_t together(const Sizes& s, int64_t threads) {
  const int64_t tokens = std::max<int64_t>(512, CHUNK * threads);
  return std::min(s.batch, std::max(up(tokens, s.length) / s.length, up(threads, s.kv_heads) / s.kv_heads));
}

}  // namespace

extern "C" int64_t columns() { return COLUMNS; }

extern "C" void attention_forward(
    const Shape* shape, const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* out,
    float* logs, int threads) {
#pragma omp parallel num_threads(threads)
  {
    static thread_local Space own;
    const Forward space = in(own, [&](Arena& arena) { return Forward(*shape, arena); });
#pragma omp for collapse(2)
    for (int64_t b = 0; b < shape->batch; b++)
      for (int64_t kv = 0; kv < shape->kv_heads; kv++)
        attend(*shape, b, kv, *query, *key, *value, *out, logs, space);
  }
}

extern "C" void attention_backward(
    const Shape* shape, const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* out,
    const Tensor* grad, const float* logs, const Tensor* grad_query, const Tensor* grad_key,
    const Tensor* grad_value, int threads) {
#pragma omp parallel num_threads(threads)
  {
    static thread_local Space own;
    const Backward space = in(own, [&](Arena& arena) { return Backward(*shape, arena); });
#pragma omp for collapse(2)
    for (int64_t b = 0; b < shape->batch; b++)
      for (int64_t kv = 0; kv < shape->kv_heads; kv++)
        attend_backward(
            *shape, b, kv, *query, *key, *value, *out, *grad, logs, *grad_query, *grad_key, *grad_value,
            space);
  }
}

// The number of floats that block_forward keeps.
extern "C" int64_t kept_floats(const Sizes* sizes) {
  Arena arena{nullptr};
  Kept(*sizes, sizes->tokens(), arena);
  return arena.used;
}

// What the backward pass reads is kept, unless `kept` is null. False where there is no memory.
extern "C" bool block_forward(
    const Sizes* sizes, const Weights* weights, const Given* given, float* kept, float* out, int threads) {
  const Sizes& s = *sizes;
  const Weights& w = *weights;
  const int64_t width = s.width(), group = together(s, threads);
  const Shape shape = s.attention();
  struct Shared {
    AllPanels panels;
    Kept kept;
  };
  static thread_local Space common;
  const Shared shared = in(common, [&](Arena& arena) {
    const AllPanels panels(s, false, arena);
    Arena apart{kept};
    return Shared{panels, kept ? Kept(s, s.tokens(), apart) : Kept(s, group * s.length, arena)};
  });
  if (!shared.panels.query.data) return false;
#pragma omp parallel num_threads(threads)
  {
    struct Own {
      float *normed, *hidden;
      Forward attention;
    };
    static thread_local Space memory;
    const Own own = in(memory, [&](Arena& arena) {
      float *normed = arena.take(CHUNK * width), *hidden = arena.take(CHUNK * s.hidden);
      return Own{normed, hidden, Forward(shape, arena)};
    });
    const AllPanels& panels = shared.panels;
    panels.fill(w);
#pragma omp barrier
    for (int64_t first = 0; first < s.batch; first += group) {
      const int64_t sequences = std::min(group, s.batch - first), token = first * s.length;
      const Chunks chunks(sequences * s.length, omp_get_num_threads());
      const Kept now = kept ? shared.kept.from(s, token) : shared.kept;
      const Given in_group = given->from(s, token);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < chunks.count; i++)
        project(s, w, panels, in_group, now, chunks.start(i), chunks.length(i), own.normed);
#pragma omp for collapse(2) schedule(static)
      for (int64_t b = 0; b < sequences; b++)
        for (int64_t kv = 0; kv < s.kv_heads; kv++)
          attend(
              shape, b, kv, s.queries(now.projections), s.keys(now.projections), s.values(now.projections),
              s.merged(now.attended), now.logs, own.attention);
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < chunks.count; i++) {
        const int64_t start = chunks.start(i), at = start * width;
        float* to = out + token * width + at;
        finish(
            s, w, panels, in_group.x + at, now.attended + at, kept ? now.middle + at : to,
            kept ? now.positive + start * s.hidden : nullptr, to, chunks.length(i), own.normed, own.hidden);
      }
    }
  }
  return true;
}

// Writes the gradients of the stream, of the rows and of all weights. False where there is no memory.
extern "C" bool block_backward(
    const Sizes* sizes, const Weights* weights, const Given* given, float* kept, const float* grad,
    float* grad_x, float* grad_rows, const Weights* grad_weights, int threads) {
  const Sizes& s = *sizes;
  const Weights& w = *weights;
  const int64_t width = s.width(), group = together(s, threads);
  const Shape shape = s.attention();
  Arena apart{kept};
  const Kept all(s, s.tokens(), apart);
  struct Shared {
    AllPanels panels;
    Made made;
    float* norms;
  };
  static thread_local Space common;
  const Shared shared = in(common, [&](Arena& arena) {
    const AllPanels panels(s, true, arena);
    const Made made(s, group * s.length, arena);
    return Shared{panels, made, arena.take(threads * 2 * width)};
  });
  if (!shared.norms) return false;
  std::fill_n(shared.norms, threads * 2 * width, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    struct Own {
      Member member;
      float *scratch, *norm_1, *norm_2;
      Backward attention;
    };
    static thread_local Space memory;
    const Own own = in(memory, [&](Arena& arena) {
      const Member member{omp_get_thread_num(), omp_get_num_threads(), arena.take(DEPTH * CHUNK)};
      float* norm = shared.norms + member.index * 2 * width;
      float* scratch = arena.take(CHUNK * width);
      return Own{member, scratch, norm, norm + width, Backward(shape, arena)};
    });
    const AllPanels& panels = shared.panels;
    const Made& made = shared.made;
    panels.fill(w);
#pragma omp barrier
    for (int64_t first = 0; first < s.batch; first += group) {
      const int64_t sequences = std::min(group, s.batch - first), token = first * s.length;
      const int64_t tokens = sequences * s.length, at = token * width;
      const Chunks chunks(tokens, omp_get_num_threads());
      const Kept now = all.from(s, token);
      const Given in_group = given->from(s, token);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < chunks.count; i++)
        finish_backward(
            s, w, panels, now, grad + at, made, chunks.start(i), chunks.length(i), own.scratch, own.norm_2);
      finish_outer(s, own.member, grad + at, made, *grad_weights, tokens, first > 0);
#pragma omp for collapse(2) schedule(static)
      for (int64_t b = 0; b < sequences; b++)
        for (int64_t kv = 0; kv < s.kv_heads; kv++)
          attend_backward(
              shape, b, kv, s.queries(now.projections), s.keys(now.projections), s.values(now.projections),
              s.merged(now.attended), s.merged(made.attended), now.logs, s.queries(made.projections),
              s.keys(made.projections), s.values(made.projections), own.attention);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < chunks.count; i++)
        project_backward(
            s, w, panels, in_group, now, made, grad_x + at, grad_rows + (w.gate ? token * s.kv_width() : 0),
            chunks.start(i), chunks.length(i), own.scratch, own.norm_1);
      project_outer(s, own.member, made, *grad_weights, tokens, first > 0);
    }
  }
  for (int64_t d = 0; d < width; d++) {
    grad_weights->norm_1[d] = grad_weights->norm_2[d] = 0;
    for (int64_t thread = 0; thread < threads; thread++) {
      grad_weights->norm_1[d] += shared.norms[thread * 2 * width + d];
      grad_weights->norm_2[d] += shared.norms[(thread * 2 + 1) * width + d];
    }
  }
  return true;
}
