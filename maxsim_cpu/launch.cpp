// Value checks, row conversion and threads for the CPU backend.
#include "launch.h"

#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>
#include <string>

namespace maxsim {
namespace cpu {
namespace {

[[noreturn]] void fail(const std::string& name, int64_t i, int64_t got, const std::string& rule) {
  throw std::runtime_error(name + "[" + std::to_string(i) + "] = " + std::to_string(got) + " " + rule);
}

void check_segments(const Segments& side, const std::string& name) {
  if (side.packed()) {
    for (int64_t s = 0; s <= side.count; ++s) {
      const int64_t offset = side.offsets[s], before = s ? side.offsets[s - 1] : 0;
      if (offset < before) fail(name + "_offsets", s, offset, "is below " + std::to_string(before));
      if (offset > side.extent)
        fail(name + "_offsets", s, offset, "exceeds the " + std::to_string(side.extent) + " packed tokens");
    }
  } else if (side.lengths) {
    for (int64_t s = 0; s < side.count; ++s) {
      const int64_t length = side.length(s);
      if (length < 0 || length > side.extent)
        fail(name + "_lengths", s, length, "is outside [0, " + std::to_string(side.extent) + "]");
    }
  }
}

void check_ids(const IndexView& ids, int64_t n, int64_t count, const std::string& name) {
  for (int64_t p = 0; p < n; ++p)
    if (ids[p] < 0 || ids[p] >= count) fail(name, p, ids[p], "is outside [0, " + std::to_string(count) + ")");
}

}  // namespace

void check_values(const Problem& problem) {
  check_segments(problem.queries, "query");
  check_segments(problem.documents, "document");
  if (problem.pairing == Pairing::list) {
    check_ids(problem.query_ids, problem.pairs, problem.queries.count, "pair_queries");
    check_ids(problem.document_ids, problem.pairs, problem.documents.count, "pair_documents");
  }
}

void check_argmax_width(const Problem& problem) {
  for (int64_t s = 0; s < problem.queries.count; ++s)
    if (problem.queries.length(s) > problem.argmax_width)
      throw std::runtime_error("argmax_width " + std::to_string(problem.argmax_width) + " is below query " +
                               std::to_string(s) + "'s " + std::to_string(problem.queries.length(s)) + " tokens");
}

void widen_row(const Isa& isa, const Segments& side, const char* row, float* out) {
  // Spread features are rows of one feature each.
  if (side.feature_stride == 1)
    isa.widen(row, 0, side.dtype, 1, side.dim, out);
  else
    isa.widen(row, side.feature_stride * element_size(side.dtype), side.dtype, side.dim, 1, out);
}

int64_t thread_count() {
  uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 && threads > 0 ? threads : 1;
}

void run_parallel(int64_t threads, void (*body)(void* context), void* context) {
  struct Call {
    void (*body)(void*);
    void* context;
  } call{body, context};
  const auto range = [](int64_t begin, int64_t end, void* pointer) {
    Call& c = *static_cast<Call*>(pointer);
    for (int64_t i = begin; i < end; ++i) c.body(c.context);
  };
  if (torch_parallel_for(0, threads, 1, range, &call) != 0) throw std::runtime_error("torch_parallel_for failed");
}

}  // namespace cpu
}  // namespace maxsim
