// How a forward pass is shared out: queries packed once into panels, document rows streamed past them. What is kept of
// a lane's similarities, a maximum or a sum of exponentials, is the reduction's business.
#pragma once

#include <algorithm>
#include <vector>

#include "panels.h"

namespace maxsim {
namespace cpu {

// Below this many multiply-adds, waking other threads costs more than it saves.
constexpr int64_t kSerialWork = 200'000;

// `source` decodes document rows that are not stored as such, or is null. A Reduction keeps two 4-byte values a lane,
// `float best` and `Second second`, the latter only where `keeps_second()`:
//   begin(best, second, lanes)                     before the first row of a document
//   score(task, first_panel, best, second)         some rows; `task` has rows and panels, the state starts at the panel
//   finish(query, pair, first_kept, best, second)  after the last row, the state from the query's first lane on
template <class Reduction>
void run_forward(const Problem& problem, const Isa& isa, const PackedQueries& queries, const RowSource* source,
                 const Reduction& reduction) {
  using Second = typename Reduction::Second;
  struct Item {
    int64_t document, from, to;  // panels
  };
  struct Scratch {
    std::vector<float> best;
    std::vector<Second> second;
    RowScratch rows;
  };
  const RowBlocks documents{problem.documents, isa, problem.normalize, isa.bf16_pairs, source};
  const bool keeps_second = reduction.keeps_second();
  // One document for panels [from, to) of `best` and `second`, which start at panel `from`.
  const auto score_panels = [&](const Item& item, float* best, Second* second, RowScratch& scratch) {
    reduction.begin(best, second, (item.to - item.from) * queries.lanes);
    return documents.for_each(item.document, scratch, [&](PanelTask& task) {
      task.panels = queries.panels.data() + item.from * queries.words * queries.lanes;
      task.panel_count = item.to - item.from;
      reduction.score(task, item.from, best, second);
    });
  };

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
  const auto finish_item = [&](int64_t i, int64_t first_kept, const float* best, const Second* second) {
    if (!cross) return reduction.finish(query_of(i), i, first_kept, best, second);
    for (int64_t q = 0; q < problem.queries.count; ++q) {
      const int64_t lane = queries.first_lane[q];
      reduction.finish(q, q * problem.documents.count + i, first_kept, best + lane, second ? second + lane : nullptr);
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
      scratch.best.resize(widest * queries.lanes);
      if (keeps_second) scratch.second.resize(widest * queries.lanes);
      Second* second = keeps_second ? scratch.second.data() : nullptr;
      const int64_t first_kept = score_panels(item(i), scratch.best.data(), second, scratch.rows);
      finish_item(i, first_kept, scratch.best.data(), second);
    });
    return;
  }
  // Few documents, long queries: the panels of one document are shared out as well.
  const int64_t chunks = std::max<int64_t>(1, std::min(widest, 4 * threads / items));
  std::vector<float> best(items * widest * queries.lanes);
  std::vector<Second> second(keeps_second ? best.size() : 0);
  std::vector<int64_t> first_kept(items * chunks, -1);
  const auto second_at = [&](int64_t lane) { return keeps_second ? second.data() + lane : nullptr; };
  parallel_dynamic(items * chunks, false, no_scratch, [&](int64_t i, Scratch& scratch) {
    const Item whole = item(i / chunks);
    const int64_t panels = whole.to - whole.from, chunk = i % chunks;
    const int64_t from = whole.from + panels * chunk / chunks, to = whole.from + panels * (chunk + 1) / chunks;
    const int64_t lane = ((i / chunks) * widest + from - whole.from) * queries.lanes;
    first_kept[i] = score_panels({whole.document, from, to}, best.data() + lane, second_at(lane), scratch.rows);
  });
  for (int64_t i = 0; i < items; ++i) {
    const int64_t lane = i * widest * queries.lanes;
    finish_item(i, first_kept[i * chunks], best.data() + lane, second_at(lane));
  }
}

}  // namespace cpu
}  // namespace maxsim
