// The functions that Python calls through ctypes: causal attention, the transformer block, the loops without
// gradient, and cross-entropy.
//
// All arrays are float32 and contiguous (attention's are tensors by strides), their layouts are described in
// the header of each kernel. `threads` is the size of the OpenMP team. Every thread keeps its scratch memory
// from call to call. Functions that return a bool return false if there is no memory for what the threads
// share; if a thread cannot get its own scratch memory, the process ends.

#include <omp.h>

#include <vector>

#include "block.h"
#include "cross_entropy.h"

namespace {

// Builds an object made of arrays twice: first to count its floats, then in a space of that size.
template <class Build>
auto in(Space& space, Build build) {
  Arena needed{nullptr};
  build(needed);
  Arena arena{space.of(needed.used)};
  return build(arena);
}

// Sequences that go through the block together: at least 512 tokens, and at least a chunk and a key/value
// head for every thread.
int64_t together(const Sizes& s, int64_t threads) {
  const int64_t tokens = std::max<int64_t>(512, CHUNK * threads);
  return std::min(s.batch, std::max(up(tokens, s.length) / s.length, up(threads, s.kv_heads) / s.kv_heads));
}

// Longer sequences are shared by all threads: what one thread makes of them would not fit the cache of its
// core, and scratch memory of that size would be needed for every thread.
constexpr int64_t LONGEST_ALONE = 1024;

// Sums the threads' gradients of the weights into `to`, each member its share of the numbers. The norms'
// gradients are all in the threads'. Those of the matrices are there if threads took sequences `alone`; if
// the team took the `rest` together, `to` already holds its part.
void sum_over_threads(
    const Sizes& s, const std::vector<Weights>& grads, const Member& member, bool alone, bool rest,
    const Weights& to) {
  const auto totals = to.parts(s);
  for (size_t part = 0; part < totals.size(); part++) {
    const auto [total, length, matrix] = totals[part];
    const int64_t first = member.first(length), end = member.end(length);
    if (!matrix || !rest) std::fill(total + first, total + end, 0.0f);
    if (matrix && !alone) continue;
    for (int64_t thread = 0; thread < member.of; thread++) {
      const float* added = grads[thread].parts(s)[part].numbers;
      for (int64_t i = first; i < end; i++) total[i] += added[i];
    }
  }
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

// Returns the number of floats in `kept` of block_forward.
extern "C" int64_t kept_floats(const Sizes* sizes) {
  Arena arena{nullptr};
  Kept(*sizes, sizes->tokens(), arena);
  return arena.used;
}

// Writes the block's output, and to `kept`, unless it is null, what the backward pass reads.
extern "C" bool block_forward(
    const Sizes* sizes, const Weights* weights, const Given* given, float* kept, float* out, int threads) {
  const Sizes& s = *sizes;
  const int64_t group = together(s, threads);
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
    static thread_local Space memory;
    const Scratch own = in(memory, [&](Arena& arena) { return Scratch(s, arena); });
    shared.panels.fill(*weights);
#pragma omp barrier
    for (int64_t first = 0; first < s.batch; first += group) {
      const int64_t token = first * s.length;
      forward_group(
          s, std::min(group, s.batch - first), *weights, shared.panels, given->from(s, token),
          kept ? shared.kept.from(s, token) : shared.kept, kept, out + token * s.width(), own,
          {omp_get_thread_num(), omp_get_num_threads()});
    }
  }
  return true;
}

// Maps the state of sequence b `loops[b]` times: to drive + carry * state, then through all layers, each with
// its own rows. The sum is rounded once (a fused multiply-add), as torch's addcmul does, so that a run may
// take either way. One thread takes a sequence through all of its loops, which keeps the state in its cache.
extern "C" bool loops_forward(
    const Sizes* sizes, int64_t layers, const Weights* weights, const float* const* rows, const float* rope,
    const float* drive, const float* carry, const int64_t* loops, float* states, int threads) {
  const Sizes& s = *sizes;
  const int64_t width = s.width(), numbers = s.length * width;
  static thread_local Space common;
  const auto panels = in(common, [&](Arena& arena) {
    std::vector<AllPanels> each;
    for (int64_t i = 0; i < layers; i++) each.emplace_back(s, false, arena);
    return each;
  });
  if (!panels[0].query.data) return false;
#pragma omp parallel num_threads(threads)
  {
    struct Own {
      Kept kept;
      Scratch scratch;
    };
    static thread_local Space memory;
    const Own own = in(memory, [&](Arena& arena) {
      const Kept kept(s, s.length, arena);
      return Own{kept, Scratch(s, arena)};
    });
    for (int64_t i = 0; i < layers; i++) panels[i].fill(weights[i]);
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < s.batch; b++) {
      float* state = states + b * numbers;
      const float* added = drive + b * numbers;
      for (int64_t loop = 0; loop < loops[b]; loop++) {
        for (int64_t i = 0; i < numbers; i += LANES)
          store(state + i, load(added + i) + load(carry + i % width) * load(state + i));
        for (int64_t i = 0; i < layers; i++) {
          const Given given{state, rope, rows[i] ? rows[i] + b * s.length * s.kv_width() : nullptr};
          forward_group(s, 1, weights[i], panels[i], given, own.kept, false, state, own.scratch, {0, 1});
        }
      }
    }
  }
  return true;
}

// Writes the gradients of the stream, of the rows and of all weights. Every thread takes the same number of
// sequences alone, which keeps what it makes in the cache of its core; the team takes the rest together. The
// weights' gradients are summed by thread.
extern "C" bool block_backward(
    const Sizes* sizes, const Weights* weights, const Given* given, float* kept, const float* grad,
    float* grad_x, float* grad_rows, const Weights* grad_weights, int threads) {
  const Sizes& s = *sizes;
  const Weights& w = *weights;
  const int64_t group = together(s, threads);
  Arena apart{kept};
  const Kept all(s, s.tokens(), apart);
  const int64_t each = s.length <= LONGEST_ALONE ? s.batch / threads : 0;  // sequences of a thread alone
  struct Shared {
    AllPanels panels;
    Made made;
    std::vector<Weights> grads;  // of each thread
  };
  static thread_local Space common;
  const Shared shared = in(common, [&](Arena& arena) {
    Shared parts{AllPanels(s, true, arena), Made(s, group * s.length, arena), {}};
    for (int thread = 0; thread < threads; thread++) parts.grads.push_back(w.like(s, each > 0, arena));
    return parts;
  });
  if (!shared.panels.query.data) return false;
#pragma omp parallel num_threads(threads)
  {
    struct Own {
      Made made;
      BackwardScratch scratch;
    };
    static thread_local Space memory;
    const Own own = in(memory, [&](Arena& arena) {
      const Made made(s, each ? s.length : 0, arena);
      return Own{made, BackwardScratch(s, arena)};
    });
    const Member member{omp_get_thread_num(), omp_get_num_threads()};
    const Weights& grads = shared.grads[member.index];
    std::fill_n(grads.norm_1, s.width(), 0.0f);
    std::fill_n(grads.norm_2, s.width(), 0.0f);
    shared.panels.fill(w);
#pragma omp barrier
    const auto back = [&](int64_t first, int64_t count, const Made& made, const Weights& to, bool add,
                          const Member& team) {
      const int64_t token = first * s.length, at = token * s.width();
      backward_group(
          s, count, w, shared.panels, given->from(s, token), all.from(s, token), made, grad + at, grad_x + at,
          grad_rows + (w.gate ? token * s.kv_width() : 0), to, add, grads.norm_1, grads.norm_2, own.scratch,
          team);
    };
    const int64_t alone = each * member.of;
    for (int64_t i = 0; i < each; i++) back(member.index * each + i, 1, own.made, grads, i > 0, {0, 1});
    for (int64_t first = alone; first < s.batch; first += group)
      back(first, std::min(group, s.batch - first), shared.made, *grad_weights, first > alone, member);
    member.wait();
    sum_over_threads(s, shared.grads, member, alone > 0, alone < s.batch, *grad_weights);
  }
  return true;
}

// Writes the nats of all labels and, unless they are null, the gradients of their sum.
extern "C" bool cross_entropy(
    const Head* sizes, const Scored* given, float* nats, float* grad_x, float* grad_matrix, int threads) {
  const Head& head = *sizes;
  const int64_t group = CHUNK * threads;
  const bool gradients = grad_x && grad_matrix;
  struct Shared {
    Panels forward, backward;
    Paneled scaled;
    float* logits;
  };
  static thread_local Space common;
  const Shared shared = in(common, [&](Arena& arena) {
    const Panels forward(head.width, head.vocabulary, false, arena);
    const Panels backward(head.width, gradients ? head.vocabulary : 0, true, arena);
    const Paneled scaled{arena.take(gradients ? group * head.width : 0), group};
    return Shared{forward, backward, scaled, arena.take(group * head.vocabulary)};
  });
  if (!shared.logits) return false;
#pragma omp parallel num_threads(threads)
  {
    static thread_local Space memory;
    float* tiles = in(memory, [&](Arena& arena) { return arena.take(DEPTH * CHUNK); });
    const Member member{omp_get_thread_num(), omp_get_num_threads()};
    shared.forward.fill(given->matrix);
    if (gradients) shared.backward.fill(given->matrix);
#pragma omp barrier
    for (int64_t first = 0; first < head.tokens; first += group) {
      const int64_t tokens = std::min(group, head.tokens - first);
      const Chunks chunks(tokens, member.of);
      for (int64_t i = member.first(chunks.count); i < member.end(chunks.count); i++)
        score_chunk(
            head, *given, shared.forward, shared.backward, first, chunks.start(i), chunks.length(i),
            shared.logits, shared.scaled, nats, gradients ? grad_x : nullptr);
      member.wait();  // also before the next group's logits are written over these
      if (!gradients) continue;
      outer(
          member, tiles, tokens, shared.logits, head.vocabulary, head.vocabulary, shared.scaled, head.width,
          grad_matrix, first > 0);
      member.wait();
    }
  }
  return true;
}
