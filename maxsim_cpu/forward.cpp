// Forward on CPU: queries packed once into panels, document rows streamed past them, the max kept in registers.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "launch.h"

namespace maxsim {
namespace cpu {
namespace {

// Document rows that one pass over the panels covers: half of a 1 MB L2, so that every panel finds them there.
constexpr int64_t kBlockBytes = 512 << 10;
// Below this many multiply-adds, waking other threads costs more than it saves.
constexpr int64_t kSerialWork = 200'000;

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

DType word_type(const Isa& isa) { return isa.bf16_pairs ? DType::bf16 : DType::f32; }

// One row as the words that the kernel multiplies.
void pack_row(const Isa& isa, const Segments& side, const char* row, uint32_t* words) {
  if (isa.bf16_pairs && side.dtype != DType::bf16) {
    std::vector<float> wide(side.dim);
    widen_row(isa, side, row, wide.data());
    words[(side.dim - 1) / 2] = 0;
    isa.narrow(wide.data(), DType::bf16, words, side.dim);
    return;
  }
  if (!isa.bf16_pairs) {
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
  out.words = isa.bf16_pairs ? (side.dim + 1) / 2 : side.dim;
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
          pack_row(isa, side, row, words.data());
          for (int64_t k = 0; k < out.words; ++k) column[k * out.lanes] = words[k];
          if (problem.normalize)
            isa.inverse_norms(reinterpret_cast<const char*>(words.data()), 0, word_type(isa), 1, side.dim,
                              out.factors.data() + panel * out.lanes + l);
        }
      });
  return out;
}

struct Scratch {
  std::vector<float> best;
  std::vector<int32_t> winner;
  std::vector<uint32_t> rows;
  std::vector<int32_t> index;
  std::vector<float> scale, wide;
  std::vector<int64_t> row_numbers;
};

// Walks a document's kept rows block by block; rows that the kernel can read in place are not copied.
struct DocumentRows {
  const Problem& problem;
  const Isa& isa;
  int64_t words;
  int64_t block;
  const RowSource* source;

  bool in_place() const {
    const Segments& side = problem.documents;
    if (side.feature_stride != 1 || side.minimum) return false;
    return isa.bf16_pairs ? side.dtype == DType::bf16 && side.dim % 2 == 0 : side.dtype == DType::f32;
  }

  // Calls score(task) with rows, index and scale filled in. Returns the first kept token, or -1.
  template <class Score>
  int64_t for_each_block(int64_t document, Scratch& scratch, const Score& score) const {
    const Segments& side = problem.documents;
    const int64_t length = side.length(document), begin = side.begin(document), mask = side.mask_begin(document);
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
      place_rows(task, document, begin, scratch);
      score(task);
    }
    return first_kept;
  }

  void place_source_rows(PanelTask& task, int64_t begin, Scratch& scratch) const {
    scratch.row_numbers.resize(task.row_count);
    for (int64_t r = 0; r < task.row_count; ++r)
      scratch.row_numbers[r] = begin + (task.index ? task.index[r] : task.first_index + r);
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

  void place_rows(PanelTask& task, int64_t document, int64_t begin, Scratch& scratch) const {
    if (source) return place_source_rows(task, begin, scratch);
    const Segments& side = problem.documents;
    const int64_t size = element_size(side.dtype);
    if (in_place() && !task.index) {
      task.rows = row_pointer(side, begin, task.first_index);
      task.row_stride = side.token_stride * size;
    } else {
      scratch.rows.resize(task.row_count * words);
      task.rows = reinterpret_cast<const char*>(scratch.rows.data());
      task.row_stride = words * 4;
      const bool together = side.feature_stride == 1 && !task.index;
      const bool pairs = isa.bf16_pairs && is_stored(side.dtype) && side.dim % 2 == 0;
      if (together && (pairs || !isa.bf16_pairs)) {
        if (pairs) scratch.wide.resize(task.row_count * side.dim);
        float* wide = pairs ? scratch.wide.data() : reinterpret_cast<float*>(scratch.rows.data());
        isa.widen(row_pointer(side, begin, task.first_index), side.token_stride * size, side.dtype, task.row_count,
                  side.dim, wide);
        if (pairs) isa.narrow(wide, DType::bf16, scratch.rows.data(), task.row_count * side.dim);
      } else {
        for (int64_t r = 0; r < task.row_count; ++r)
          pack_row(isa, side, row_pointer(side, begin, task.index ? task.index[r] : task.first_index + r),
                   scratch.rows.data() + r * words);
      }
    }
    if (!problem.normalize && !side.scale && !side.minimum) return;
    scratch.scale.resize(task.row_count);
    if (side.scale) take_scales(task, document, scratch.scale.data());
    if (side.minimum) return add_minima(task, document, scratch);
    task.scale = scratch.scale.data();
    if (problem.normalize)
      isa.inverse_norms(task.rows, task.row_stride, word_type(isa), task.row_count, side.dim, scratch.scale.data());
  }

  int64_t token_of(const PanelTask& task, int64_t row) const {
    return task.index ? task.index[row] : task.first_index + row;
  }

  void take_scales(const PanelTask& task, int64_t document, float* out) const {
    const Segments& side = problem.documents;
    const float* scales = side.factors(side.scale, document);
    const int64_t first = side.packed() ? side.offsets[document] : 0;
    for (int64_t r = 0; r < task.row_count; ++r)
      out[r] = Segments::factor(side.scale, scales, first + token_of(task, r));
  }

  // Rows as what they stand for, because a minimum cannot be applied to a sum of products.
  void add_minima(const PanelTask& task, int64_t document, Scratch& scratch) const {
    const Segments& side = problem.documents;
    const float* minima = side.factors(side.minimum, document);
    const int64_t first = side.packed() ? side.offsets[document] : 0;
    float* row = reinterpret_cast<float*>(scratch.rows.data());
    for (int64_t r = 0; r < task.row_count; ++r, row += side.dim) {
      const float minimum = Segments::factor(side.minimum, minima, first + token_of(task, r));
      const float scale = side.scale ? scratch.scale[r] : 1.f;
      for (int64_t k = 0; k < side.dim; ++k) row[k] = row[k] * scale + minimum;
    }
  }
};

struct Call {
  const Problem& problem;
  const Isa& isa;
  const PackedQueries& queries;
  DocumentRows documents;
  float* scores;
  int32_t* argmax;

  // Running max over one document for panels [from, to) of `best` and `winner`, which start at panel `from`.
  int64_t score_panels(int64_t document, int64_t from, int64_t to, float* best, int32_t* winner,
                       Scratch& scratch) const {
    std::fill(best, best + (to - from) * queries.lanes, -std::numeric_limits<float>::infinity());
    if (winner) std::fill(winner, winner + (to - from) * queries.lanes, -1);
    return documents.for_each_block(document, scratch, [&](PanelTask& task) {
      task.panels = queries.panels.data() + from * queries.words * queries.lanes;
      task.panel_count = to - from;
      task.best = best;
      task.winner = winner;
      isa.score(task);
    });
  }

  // Sum over one query's lanes, in token order and in double, so that the order of work never shows in a score.
  void finish(int64_t query, int64_t pair, int64_t first_kept, const float* best, const int32_t* winner) const {
    const int64_t from = queries.first_lane[query], to = queries.last_lane[query];
    double sum = 0;
    for (int64_t l = from; l < to; ++l)
      sum += queries.factors.empty() ? best[l - from] : static_cast<double>(best[l - from]) * queries.factors[l];
    scores[pair] = first_kept < 0 ? problem.empty_score : static_cast<float>(sum);
    if (!argmax) return;
    int32_t* out = argmax + pair * problem.argmax_width;
    std::fill(out, out + problem.argmax_width, -1);
    if (first_kept < 0) return;
    for (int64_t l = from; l < to; ++l)  // nothing beats -inf: then every kept token ties and the first one wins
      out[queries.token[l]] = winner[l - from] < 0 ? static_cast<int32_t>(first_kept) : winner[l - from];
  }
};

struct Item {
  int64_t document, from, to;  // panels
};

}  // namespace

void forward(const Problem& problem, Path path, float* scores, int32_t* argmax) {
  // A value and its minimum together need more bits than bf16 has.
  const DType documents = problem.documents.minimum ? DType::f32 : problem.documents.dtype;
  forward(problem, choose_isa(path, problem.queries.dtype, documents), scores, argmax, nullptr);
}

void forward(const Problem& problem, const Isa& isa, float* scores, int32_t* argmax, const RowSource* source) {
  check_values(problem);
  if (problem.argmax_width != kNoArgmax) check_argmax_width(problem);
  if (problem.pairs == 0) return;
  const PackedQueries queries = pack_queries(problem, isa);
  const int64_t block = std::max<int64_t>(48, kBlockBytes / (queries.words * 4) / 48 * 48);
  const Call call{problem, isa, queries, DocumentRows{problem, isa, queries.words, block, source}, scores, argmax};

  const bool cross = problem.pairing == Pairing::cross;
  const int64_t items = cross ? problem.documents.count : problem.pairs;
  const auto query_of = [&](int64_t pair) {
    return problem.pairing == Pairing::slab ? pair / problem.documents.inner : problem.query_ids[pair];
  };
  const auto item = [&](int64_t i) {
    if (cross) return Item{i, 0, queries.panel_count};
    const int64_t query = query_of(i), from = queries.first_lane[query] / queries.lanes;
    const int64_t to = (queries.last_lane[query] + queries.lanes - 1) / queries.lanes;
    return Item{problem.pairing == Pairing::slab ? i : problem.document_ids[i], from, std::max(from, to)};
  };
  const auto finish_item = [&](int64_t i, int64_t first_kept, const float* best, const int32_t* winner) {
    if (!cross) return call.finish(query_of(i), i, first_kept, best, winner);
    for (int64_t q = 0; q < problem.queries.count; ++q) {
      const int64_t lane = queries.first_lane[q];
      call.finish(q, q * problem.documents.count + i, first_kept, best + lane, winner ? winner + lane : nullptr);
    }
  };

  const int64_t widest = cross ? queries.panel_count : queries.longest;
  const int64_t tokens = problem.documents.packed() && problem.documents.count
                             ? problem.documents.extent / problem.documents.count + 1
                             : problem.documents.extent;
  const double work = static_cast<double>(items) * widest * queries.lanes * tokens * problem.queries.dim;
  const bool serial = work < kSerialWork;
  const int64_t threads = serial ? 1 : thread_count();
  const auto no_scratch = [] { return Scratch{}; };
  if (items >= 2 * threads || threads == 1) {
    parallel_dynamic(items, serial, no_scratch, [&](int64_t i, Scratch& scratch) {
      const Item it = item(i);
      scratch.best.resize(widest * queries.lanes);
      if (argmax) scratch.winner.resize(widest * queries.lanes);
      int32_t* winner = argmax ? scratch.winner.data() : nullptr;
      const int64_t first_kept = call.score_panels(it.document, it.from, it.to, scratch.best.data(), winner, scratch);
      finish_item(i, first_kept, scratch.best.data(), winner);
    });
    return;
  }
  // Few documents, long queries: the panels of one document are shared out as well.
  const int64_t chunks = std::max<int64_t>(1, std::min(widest, 4 * threads / items));
  std::vector<float> best(items * widest * queries.lanes);
  std::vector<int32_t> winner(argmax ? best.size() : 0);
  std::vector<int64_t> first_kept(items * chunks, -1);
  parallel_dynamic(items * chunks, false, no_scratch, [&](int64_t i, Scratch& scratch) {
    const Item it = item(i / chunks);
    const int64_t panels = it.to - it.from, chunk = i % chunks;
    const int64_t from = it.from + panels * chunk / chunks, to = it.from + panels * (chunk + 1) / chunks;
    const int64_t lane = ((i / chunks) * widest + from - it.from) * queries.lanes;
    first_kept[i] =
        call.score_panels(it.document, from, to, best.data() + lane, argmax ? winner.data() + lane : nullptr, scratch);
  });
  for (int64_t i = 0; i < items; ++i) {
    const int64_t lane = i * widest * queries.lanes;
    finish_item(i, first_kept[i * chunks], best.data() + lane, argmax ? winner.data() + lane : nullptr);
  }
}

}  // namespace cpu
}  // namespace maxsim
