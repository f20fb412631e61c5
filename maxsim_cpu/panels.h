// Tokens on vector lanes and rows read in place: how both sides of a problem reach the loops of an instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "launch.h"

namespace maxsim {
namespace cpu {

// Rows that one pass over the panels covers: half of a 1 MB L2, so that every panel finds them there.
constexpr int64_t kBlockBytes = 512 << 10;

inline DType word_type(bool pairs) { return pairs ? DType::bf16 : DType::f32; }

inline int64_t words_of(int64_t dim, bool pairs) { return pairs ? (dim + 1) / 2 : dim; }

// One row as the words that the kernel multiplies: fp32, or 16 bits of each feature in `pairs`.
void pack_row(const Isa& isa, const Segments& side, const char* row, bool pairs, uint32_t* words);

// Kept query tokens laid out on vector lanes. In a cross product neighbouring queries share a panel; otherwise every
// query starts a panel of its own.
struct PackedQueries {
  std::vector<int64_t> first_lane;  // per segment, and the end
  std::vector<int64_t> last_lane;
  std::vector<int32_t> token;  // of each lane within its query
  std::vector<float> factors;  // of each lane: inverse norms or scales, empty where there are none
  std::vector<uint32_t> panels;
  int64_t lanes = 0;  // per panel
  int64_t words = 0;
  int64_t panel_count = 0;
  int64_t longest = 0;  // panels of the longest query
};

PackedQueries pack_queries(const Problem& problem, const Isa& isa);

struct RowScratch {
  std::vector<uint32_t> rows;
  std::vector<int32_t> index;
  std::vector<float> scale, wide;
  std::vector<int64_t> row_numbers;
};

// Walks the kept rows of a segment block by block; rows that the kernel can read in place are not copied.
struct RowBlocks {
  const Segments& side;
  const Isa& isa;
  bool normalize;
  bool pairs;               // of bf16, which the kernel multiplies two at a time
  const RowSource* source;  // of rows that have to be decoded, or null
  int64_t words = words_of(side.dim, pairs);
  int64_t block = std::max<int64_t>(48, kBlockBytes / (words * 4) / 48 * 48);

  // Calls visit(task) with rows, index and scale filled in. Returns the first kept token, or -1.
  template <class Visit>
  int64_t for_each(int64_t segment, RowScratch& scratch, const Visit& visit) const {
    const int64_t length = side.length(segment), begin = side.begin(segment), mask = side.mask_begin(segment);
    int64_t first_kept = -1;
    for (int64_t token = 0; token < length;) {
      scratch.index.clear();
      int64_t count = 0, first = token;
      if (side.mask) {
        for (; token < length && count < block; ++token)
          if (kept(side, mask, token)) {
            scratch.index.push_back(static_cast<int32_t>(token));
            ++count;
          }
        if (!count) break;
        first = scratch.index.front();
        if (scratch.index.back() - first + 1 == count) scratch.index.clear();
      } else {
        count = std::min(block, length - token);
        token += count;
      }
      if (first_kept < 0) first_kept = first;
      PanelTask task{};
      task.words = words;
      task.row_count = count;
      task.first_index = static_cast<int32_t>(first);
      task.index = scratch.index.empty() ? nullptr : scratch.index.data();
      place(task, segment, begin, scratch);
      visit(task);
    }
    return first_kept;
  }

 private:
  void place(PanelTask& task, int64_t segment, int64_t begin, RowScratch& scratch) const;
  void place_decoded(PanelTask& task, int64_t begin, RowScratch& scratch) const;
  void take_scales(const PanelTask& task, int64_t segment, float* out) const;
  void add_minima(const PanelTask& task, int64_t segment, RowScratch& scratch) const;
};

}  // namespace cpu
}  // namespace maxsim
