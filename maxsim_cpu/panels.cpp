// Packing of query tokens and placing of document rows.
#include "panels.h"

#include <cstring>
#include <utility>

namespace maxsim {
namespace cpu {
namespace {

int64_t token_of(const PanelTask& task, int64_t row) { return task.index ? task.index[row] : task.first_index + row; }

}  // namespace

void pack_row(const Isa& isa, const Segments& side, const char* row, bool pairs, uint32_t* words) {
  if (pairs && side.dtype != DType::bf16) {
    std::vector<float> wide(side.dim);
    widen_row(isa, side, row, wide.data());
    words[(side.dim - 1) / 2] = 0;
    isa.narrow(wide.data(), DType::bf16, words, side.dim);
    return;
  }
  if (!pairs) {
    widen_row(isa, side, row, reinterpret_cast<float*>(words));
    return;
  }
  uint16_t* half = reinterpret_cast<uint16_t*>(words);
  const uint16_t* source = reinterpret_cast<const uint16_t*>(row);
  for (int64_t k = 0; k < side.dim; ++k) half[k] = source[k * side.feature_stride];
  if (side.dim % 2) half[side.dim] = 0;
}

PackedQueries pack_queries(const Problem& problem, const Isa& isa) {
  const Segments& side = problem.queries;
  PackedQueries out;
  out.lanes = isa.lanes;
  out.words = words_of(side.dim, isa.bf16_pairs);
  std::vector<const char*> rows;
  std::vector<float> scales;
  const bool own_panels = problem.pairing != Pairing::cross;
  for (int64_t s = 0; s < side.count; ++s) {
    if (own_panels) rows.resize((rows.size() + out.lanes - 1) / out.lanes * out.lanes, nullptr);
    out.first_lane.push_back(static_cast<int64_t>(rows.size()));
    const int64_t length = side.length(s), begin = side.begin(s), mask = side.mask_begin(s);
    for (int64_t t = 0; t < length; ++t) {
      if (!kept(side, mask, t)) continue;
      out.token.resize(rows.size(), -1);
      out.token.push_back(static_cast<int32_t>(t));
      rows.push_back(row_pointer(side, begin, t));
      if (!side.scale) continue;
      scales.resize(rows.size() - 1);
      scales.push_back(
          Segments::factor(side.scale, side.factors(side.scale, s), t + (side.packed() ? side.offsets[s] : 0)));
    }
    out.last_lane.push_back(static_cast<int64_t>(rows.size()));
    const int64_t lanes_used = out.last_lane[s] - out.first_lane[s];
    out.longest = std::max(out.longest, (lanes_used + out.lanes - 1) / out.lanes);
  }
  out.panel_count = (static_cast<int64_t>(rows.size()) + out.lanes - 1) / out.lanes;
  rows.resize(out.panel_count * out.lanes, nullptr);
  out.panels.resize(out.panel_count * out.words * out.lanes);
  if (side.scale) out.factors = std::move(scales);
  if (side.scale || problem.normalize) out.factors.resize(rows.size());
  parallel_dynamic(
      out.panel_count, out.panel_count < 64, [&] { return std::vector<uint32_t>(out.words); },
      [&](int64_t panel, std::vector<uint32_t>& words) {
        for (int64_t l = 0; l < out.lanes; ++l) {
          const char* row = rows[panel * out.lanes + l];
          uint32_t* column = out.panels.data() + panel * out.words * out.lanes + l;
          if (!row) continue;
          pack_row(isa, side, row, isa.bf16_pairs, words.data());
          for (int64_t k = 0; k < out.words; ++k) column[k * out.lanes] = words[k];
          if (problem.normalize)
            isa.inverse_norms(reinterpret_cast<const char*>(words.data()), 0, word_type(isa.bf16_pairs), 1, side.dim,
                              out.factors.data() + panel * out.lanes + l);
        }
      });
  return out;
}

void RowBlocks::place_decoded(PanelTask& task, int64_t begin, RowScratch& scratch) const {
  scratch.row_numbers.resize(task.row_count);
  for (int64_t r = 0; r < task.row_count; ++r) scratch.row_numbers[r] = begin + token_of(task, r);
  scratch.rows.resize(task.row_count * words);
  float* rows = reinterpret_cast<float*>(scratch.rows.data());
  task.rows = reinterpret_cast<const char*>(rows);
  task.row_stride = words * 4;
  source->fill(scratch.row_numbers.data(), task.row_count, rows);
  if (!source->scaled()) return;
  scratch.scale.resize(task.row_count);
  task.scale = scratch.scale.data();
  source->scales(scratch.row_numbers.data(), task.row_count, rows, scratch.scale.data());
}

void RowBlocks::place(PanelTask& task, int64_t segment, int64_t begin, RowScratch& scratch) const {
  if (source) return place_decoded(task, begin, scratch);
  const int64_t size = element_size(side.dtype);
  const bool in_place = side.feature_stride == 1 && !side.minimum &&
                        (pairs ? side.dtype == DType::bf16 && side.dim % 2 == 0 : side.dtype == DType::f32);
  if (in_place && !task.index) {
    task.rows = row_pointer(side, begin, task.first_index);
    task.row_stride = side.token_stride * size;
  } else {
    scratch.rows.resize(task.row_count * words);
    task.rows = reinterpret_cast<const char*>(scratch.rows.data());
    task.row_stride = words * 4;
    const bool together = side.feature_stride == 1 && !task.index;
    const bool narrowed = pairs && is_stored(side.dtype) && side.dim % 2 == 0;
    if (together && (narrowed || !pairs)) {
      if (narrowed) scratch.wide.resize(task.row_count * side.dim);
      float* wide = narrowed ? scratch.wide.data() : reinterpret_cast<float*>(scratch.rows.data());
      isa.widen(row_pointer(side, begin, task.first_index), side.token_stride * size, side.dtype, task.row_count,
                side.dim, wide);
      if (narrowed) isa.narrow(wide, DType::bf16, scratch.rows.data(), task.row_count * side.dim);
    } else {
      for (int64_t r = 0; r < task.row_count; ++r)
        pack_row(isa, side, row_pointer(side, begin, token_of(task, r)), pairs, scratch.rows.data() + r * words);
    }
  }
  if (!normalize && !side.scale && !side.minimum) return;
  scratch.scale.resize(task.row_count);
  if (side.scale) take_scales(task, segment, scratch.scale.data());
  if (side.minimum) return add_minima(task, segment, scratch);
  task.scale = scratch.scale.data();
  if (normalize)
    isa.inverse_norms(task.rows, task.row_stride, word_type(pairs), task.row_count, side.dim, scratch.scale.data());
}

void RowBlocks::take_scales(const PanelTask& task, int64_t segment, float* out) const {
  const float* scales = side.factors(side.scale, segment);
  const int64_t first = side.packed() ? side.offsets[segment] : 0;
  for (int64_t r = 0; r < task.row_count; ++r) out[r] = Segments::factor(side.scale, scales, first + token_of(task, r));
}

// Rows as what they stand for, because a minimum cannot be applied to a sum of products.
void RowBlocks::add_minima(const PanelTask& task, int64_t segment, RowScratch& scratch) const {
  const float* minima = side.factors(side.minimum, segment);
  const int64_t first = side.packed() ? side.offsets[segment] : 0;
  float* row = reinterpret_cast<float*>(scratch.rows.data());
  for (int64_t r = 0; r < task.row_count; ++r, row += side.dim) {
    const float minimum = Segments::factor(side.minimum, minima, first + token_of(task, r));
    const float scale = side.scale ? scratch.scale[r] : 1.f;
    for (int64_t k = 0; k < side.dim; ++k) row[k] = row[k] * scale + minimum;
  }
}

}  // namespace cpu
}  // namespace maxsim
