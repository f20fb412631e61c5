// What an instruction set provides: the few loops that touch every element. Everything else is ordinary C++.
#pragma once

#include "../maxsim_common/problem.h"

namespace maxsim {
namespace cpu {

// Numbers are part of the ops' schema (`path`).
enum class Path : int32_t { choose = 0, portable = 1, avx2 = 2, avx512 = 3, avx512_bf16 = 4, neon = 5 };

// Queries are packed in panels of `lanes` tokens: word k of a panel holds feature k (fp32) or features 2k, 2k + 1
// (bf16 pairs) of every lane, so the running max of a lane is one element of a vector and needs no shuffle.
struct PanelTask {
  const uint32_t* panels;  // [panel_count][words][lanes]
  int64_t panel_count;
  int64_t words;         // 4-byte words per row
  const char* rows;      // document rows, read in place
  int64_t row_stride;    // bytes
  int64_t row_count;     // >= 1
  const float* scale;    // factor per row (1 / norm), or null
  const int32_t* index;  // document token of each row; null = first_index + row
  int32_t first_index;
  float* best;      // [panel_count][lanes] running max, updated
  int32_t* winner;  // [panel_count][lanes] token of that max, updated; or null
};

// The same panels and rows under a soft maximum. With s a similarity, scaled by its row, x = s * factor is its
// logarithm to base 2, in units of the temperature; `factor` also scales the lane.
struct SoftTask {
  PanelTask tokens;     // `best` is the greatest x so far, updated, and finite at first; `winner` is unused
  const float* factor;  // [panel_count][lanes]
  float* total;         // [panel_count][lanes] sum of 2^(x - best), updated
};

// Adds, to the gradient of each lane's token, every row's, weighted by 2^(x - lane_log - row_log) * lane_weight *
// row_weight. The logarithms are finite.
struct SoftGradientTask {
  PanelTask tokens;  // fp32 words; `best` and `winner` are unused
  const float* factor;
  const float* lane_log;
  const float* lane_weight;
  const float* row_log;  // per row
  const float* row_weight;
  float* gradient;  // [panel_count][words][lanes], updated
};

struct Isa {
  Path path;
  int lanes;
  bool bf16_pairs;  // `score` takes bf16 pairs instead of fp32 words
  void (*score)(const PanelTask&);
  // `count` rows, `stride` bytes apart, of contiguous features; out is [count, dim].
  void (*widen)(const char* rows, int64_t stride, DType, int64_t count, int64_t dim, float* out);
  // 1 / max(norm, kNormEps) of each row; a NaN norm stays NaN.
  void (*inverse_norms)(const char* rows, int64_t stride, DType, int64_t count, int64_t dim, float* out);
  void (*narrow)(const float* source, DType, void* out, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*accumulate)(float* sum, const char* row, DType, float factor, int64_t n);  // sum += factor * row
  // row[k] += table[bucket of feature k]: 8 / nbits buckets a byte, lowest bits first. The table has 256 entries, the
  // 2 ** nbits weights over and over.
  void (*add_buckets)(const uint8_t* packed, int32_t nbits, const float* table, int64_t dim, float* row);
  void (*soft_score)(const SoftTask&);
  void (*soft_gradient)(const SoftGradientTask&);
};

extern const Isa portable_isa;
#if defined(__x86_64__)
extern const Isa avx2_isa;
extern const Isa avx512_isa;
extern const Isa avx512_bf16_isa;
#elif defined(__aarch64__)
extern const Isa neon_isa;
#endif

// Bit p is set where this machine runs path p.
int64_t available_paths();

// The table for a call on these dtypes. Throws where `path` is not available here.
const Isa& choose_isa(Path path, DType queries, DType documents);

}  // namespace cpu
}  // namespace maxsim
