// The CPU backend's two entries and what they share: value checks, kept tokens, norms, threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace maxsim {
namespace cpu {

// Document rows that are not stored as they are multiplied. Rows are numbered as Segments::begin counts them when the
// token stride is one.
class RowSource {
 public:
  virtual ~RowSource() = default;
  // fp32 [count, dim]; called by several threads at once.
  virtual void fill(const int64_t* rows, int64_t count, float* out) const = 0;
  // Whether similarities with a row are multiplied by a factor of its own, and those factors.
  virtual bool scaled() const = 0;
  virtual void scales(const int64_t* rows, int64_t count, const float* filled, float* out) const = 0;
};

// scores [pairs]; argmax [pairs, argmax_width] or null. With a source its rows stand for the documents' features, and
// `problem.normalize` is the queries' alone.
void forward(const Problem& problem, Path path, float* scores, int32_t* argmax);
void forward(const Problem& problem, const Isa& isa, float* scores, int32_t* argmax, const RowSource* source);

// Gradients in the inputs' dtypes, contiguous, zeroed by the caller; null = not needed.
void backward(const Problem& problem, Path path, const float* grad_scores, const int32_t* argmax, void* grad_queries,
              void* grad_documents);

// Throws std::runtime_error that names the first offset, length or id which points outside its tensor.
void check_values(const Problem& problem);

// Throws where a query is longer than the argmax has slots.
void check_argmax_width(const Problem& problem);

inline const char* row_pointer(const Segments& side, int64_t begin, int64_t token) {
  return static_cast<const char*>(side.data) + (begin + token * side.token_stride) * element_size(side.dtype);
}

inline bool kept(const Segments& side, int64_t mask_begin, int64_t token) {
  return !side.mask || side.mask[mask_begin + token * side.mask_token_stride];
}

// One row as contiguous fp32, whatever its dtype and feature stride.
void widen_row(const Isa& isa, const Segments& side, const char* row, float* out);

int64_t thread_count();
void run_parallel(int64_t threads, void (*body)(void* context), void* context);

// Calls body(i, scratch) for i in [0, n), handed out dynamically so that uneven items still fill every core.
// Each thread makes one scratch. The order of calls never affects a result: every i owns what it writes.
template <class MakeScratch, class Body>
void parallel_dynamic(int64_t n, bool serial, const MakeScratch& make_scratch, const Body& body) {
  const int64_t threads = serial ? 1 : thread_count();
  struct Context {
    std::atomic<int64_t> next{0};
    int64_t n, step;
    const MakeScratch& make_scratch;
    const Body& body;
  } context{{0}, n, n / (threads * 32) + 1, make_scratch, body};
  const auto worker = [](void* pointer) {
    Context& c = *static_cast<Context*>(pointer);
    auto scratch = c.make_scratch();
    for (int64_t i = c.next.fetch_add(c.step); i < c.n; i = c.next.fetch_add(c.step))
      for (int64_t j = i; j < i + c.step && j < c.n; ++j) c.body(j, scratch);
  };
  if (threads == 1 || n <= 1)
    worker(&context);
  else
    run_parallel(threads, worker, &context);
}

}  // namespace cpu
}  // namespace maxsim
