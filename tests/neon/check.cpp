// Holds every loop of every instruction set that runs here against scalar references, without torch: linked with
// maxsim_cpu/dispatch.cpp and isa_*.cpp, native or under an emulator. Prints one line a path, exits 1 on a difference.
#include <algorithm>
#include <limits>
#include <vector>

#include "support.h"

namespace check {
namespace {

using maxsim::cpu::Isa;
using maxsim::cpu::PanelTask;
using maxsim::cpu::Path;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr DType kHalves[] = {DType::f16, DType::bf16};

float float_of(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Every 16-bit pattern, and as many of the 32-bit ones, in rows of `dim` at a padded stride.
void check_widen(const Isa& isa, Random& random, Report& report) {
  for (DType type : kTypes)
    for (int64_t dim : {1, 3, 7, 16, 33}) {
      const int64_t count = 65536 / dim, stride = (dim + 5) * size_of(type);
      Guarded<char> rows((count - 1) * stride + dim * size_of(type));
      Guarded<float> out(count * dim);
      for (int64_t i = 0; i < count * dim; ++i) {
        char* element = rows.data() + i / dim * stride + i % dim * size_of(type);
        const uint32_t bits = type == DType::f32 ? random.bits() : static_cast<uint32_t>(i);
        std::memcpy(element, &bits, size_of(type));
      }
      isa.widen(rows.data(), stride, type, count, dim, out.data());
      for (int64_t i = 0; i < count * dim; ++i) {
        const double want = get(rows.data() + i / dim * stride, i % dim, type);
        report.same(out[i], want, "widen", static_cast<int>(type), dim, i);
        report.same(std::signbit(out[i]), std::signbit(want) || (std::isnan(want) && std::signbit(out[i])),
                    "sign of widen", static_cast<int>(type), dim, i);
      }
    }
}

// Every value of the narrow type, every midpoint between two of them, the floats next to it, and random bits.
std::vector<float> hard_to_round(DType type, Random& random) {
  std::vector<float> out;
  for (int32_t bits = 0; bits < 65536; ++bits) {
    const double value = decode(static_cast<uint16_t>(bits), type);
    const double next = decode(static_cast<uint16_t>(bits + 1), type);
    out.push_back(static_cast<float>(value));
    if (!std::isfinite(value) || !std::isfinite(next)) continue;
    const float middle = static_cast<float>((value + next) / 2);  // exact: one bit more than the narrow type has
    for (float m : {middle, std::nextafter(middle, kInfinity), std::nextafter(middle, -kInfinity)}) out.push_back(m);
  }
  for (float m : {65519.f, 65520.f, 65536.f, std::numeric_limits<float>::max(), kInfinity, kNan})
    for (float sign : {1.f, -1.f}) out.push_back(sign * m);
  for (int64_t i = 0; i < 100'000; ++i) out.push_back(float_of(random.bits()));
  return out;
}

void check_narrow(const Isa& isa, Random& random, Report& report) {
  for (DType type : kHalves) {
    const std::vector<float> values = hard_to_round(type, random);
    int64_t n = 1;
    for (int64_t first = 0; first < static_cast<int64_t>(values.size()); first += n, n = n % 67 + 1) {
      n = std::min<int64_t>(n, values.size() - first);
      Guarded<float> source(n);
      Guarded<uint16_t> out(n);
      std::copy_n(values.data() + first, n, source.data());
      isa.narrow(source.data(), type, out.data(), n);
      for (int64_t i = 0; i < n; ++i) {
        const bool nan = std::isnan(source[i]);
        const double got = nan ? decode(out[i], type) : out[i];
        report.same(got, nan ? NAN : encode(source[i], type), "narrow", static_cast<int>(type), n, first + i);
      }
    }
  }
  Guarded<float> source(5), out(5);
  for (int64_t i = 0; i < 5; ++i) source[i] = random.normal();
  isa.narrow(source.data(), DType::f32, out.data(), 5);
  for (int64_t i = 0; i < 5; ++i) report.same(out[i], source[i], "narrow to f32", i);
}

void check_dot(const Isa& isa, Random& random, Report& report) {
  for (int64_t n = 0; n < 140; ++n)
    for (float last : {1.f, kInfinity, kNan}) {
      Guarded<float> a(n), b(n);
      double want = 0;
      for (int64_t k = 0; k < n; ++k) {
        a[k] = random.eighth();
        b[k] = k + 1 < n ? random.eighth() : last;
        want += static_cast<double>(a[k]) * b[k];
      }
      report.same(isa.dot(a.data(), b.data(), n), want, "dot", n);
    }
}

void check_inverse_norms(const Isa& isa, Random& random, Report& report) {
  constexpr int64_t kCount = 5;
  for (DType type : kTypes)
    for (int64_t dim = 1; dim < 140; ++dim) {
      const int64_t stride = (dim + 1) * size_of(type);
      Guarded<char> rows((kCount - 1) * stride + dim * size_of(type));
      Guarded<float> out(kCount);
      // Row 0 is zero; rows 1 to 3 are random, then given an infinity or a NaN at the end; row 4 has a norm below eps.
      for (int64_t r = 0; r < kCount; ++r)
        for (int64_t k = 0; k < dim; ++k) {
          const float scale[] = {0.f, 1.f, 1.f, 1.f, 1e-15f};
          put(rows.data() + r * stride, k, scale[r] * random.normal(), type);
        }
      put(rows.data() + 2 * stride, dim - 1, -kInfinity, type);
      put(rows.data() + 3 * stride, dim - 1, kNan, type);
      isa.inverse_norms(rows.data(), stride, type, kCount, dim, out.data());
      for (int64_t r = 0; r < kCount; ++r) {
        double sum = 0;
        for (int64_t k = 0; k < dim; ++k) sum += std::pow(get(rows.data() + r * stride, k, type), 2);
        const double norm = std::sqrt(sum), want = 1 / (norm < maxsim::kNormEps ? maxsim::kNormEps : norm);
        report.near(out[r], want, std::fabs(want) * 1e-6, "inverse_norms", static_cast<int>(type), dim, r);
      }
    }
}

void check_accumulate(const Isa& isa, Random& random, Report& report) {
  for (DType type : kTypes)
    for (int64_t dim = 1; dim < 140; ++dim)
      for (float last : {1.f, -kInfinity, kNan}) {
        Guarded<char> row(dim * size_of(type));
        Guarded<float> sum(dim);
        std::vector<double> want(dim);
        const float factor = random.eighth();
        for (int64_t k = 0; k < dim; ++k) {
          put(row.data(), k, k + 1 < dim ? random.eighth() : last, type);
          sum[k] = random.eighth();
          want[k] = sum[k] + factor * get(row.data(), k, type);
        }
        isa.accumulate(sum.data(), row.data(), type, factor, dim);
        for (int64_t k = 0; k < dim; ++k) report.same(sum[k], want[k], "accumulate", static_cast<int>(type), dim, k);
      }
}

// One call of `score`: values by [row or lane][feature], and the memory that the loop sees.
struct Scene {
  const Isa& isa;
  int64_t panels, rows, words, features, stride;
  DType type;
  Guarded<uint32_t> packed;
  Guarded<char> row_bytes;
  Guarded<float> scale, best;
  Guarded<int32_t> index, winner;
  PanelTask task{};

  Scene(const Isa& table, int64_t panel_count, int64_t row_count, int64_t word_count)
      : isa(table),
        panels(panel_count),
        rows(row_count),
        words(word_count),
        features(word_count * (table.bf16_pairs ? 2 : 1)),
        stride(word_count * 4 + 6),  // rows of a strided input need not lie on word boundaries
        type(table.bf16_pairs ? DType::bf16 : DType::f32),
        packed(panel_count * word_count * table.lanes),
        row_bytes((row_count - 1) * stride + word_count * 4),
        scale(row_count),
        best(panel_count * table.lanes),
        index(row_count),
        winner(panel_count * table.lanes) {
    task.panels = packed.data();
    task.panel_count = panels;
    task.words = words;
    task.rows = row_bytes.data();
    task.row_stride = stride;
    task.row_count = rows;
    task.first_index = 7;
    task.best = best.data();
    task.winner = winner.data();
  }

  int64_t lanes() const { return panels * isa.lanes; }

  // A row is written and read by way of an aligned copy.
  template <class Value>
  void fill(const Value& value) {
    std::vector<uint32_t> copy(words);
    for (int64_t lane = 0; lane < lanes(); ++lane) {
      for (int64_t k = 0; k < features; ++k) put(copy.data(), k, value(), type);
      for (int64_t w = 0; w < words; ++w)
        packed[(lane / isa.lanes * words + w) * isa.lanes + lane % isa.lanes] = copy[w];
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < features; ++k) put(copy.data(), k, value(), type);
      std::memcpy(row_bytes.data() + r * stride, copy.data(), words * 4);
    }
  }
  std::vector<double> lane_values(int64_t lane) const {
    std::vector<uint32_t> copy(words);
    for (int64_t w = 0; w < words; ++w)
      copy[w] = task.panels[(lane / isa.lanes * words + w) * isa.lanes + lane % isa.lanes];
    return values(copy);
  }
  std::vector<double> row_values(int64_t row) const {
    std::vector<uint32_t> copy(words);
    std::memcpy(copy.data(), row_bytes.bytes() + row * stride, words * 4);
    return values(copy);
  }
  std::vector<double> values(const std::vector<uint32_t>& copy) const {
    std::vector<double> out(features);
    for (int64_t k = 0; k < features; ++k) out[k] = get(copy.data(), k, type);
    return out;
  }
  int32_t token(int64_t row) const {
    return task.index ? task.index[row] : task.first_index + static_cast<int32_t>(row);
  }
};

// The rule of the running max: a larger value wins, the first NaN wins and stays, equals change nothing.
struct Running {
  double best;
  int32_t winner;

  void meet(double value, int32_t token) {
    if (!(value > best) && !(std::isnan(value) && !std::isnan(best))) return;
    best = value;
    winner = token;
  }
};

// Products of eighths and scales by powers of two are exact, so max and winner have to agree in every bit.
void check_score(const Isa& isa, Random& random, Report& report) {
  for (int64_t panels : {1, 2, 3, 4, 5, 7, 8, 9})
    for (int64_t rows = 1; rows < 41; ++rows)
      for (int forms = 0; forms < 16; ++forms) {
        const bool with_winner = forms & 1, with_scale = forms & 2, with_index = forms & 4, special = forms & 8;
        Scene scene(isa, panels, rows, 1 + random.below(9));
        scene.fill([&] {
          if (!special || random.below(40 * scene.features)) return random.eighth();
          const float values[] = {kInfinity, -kInfinity, kNan, -0.f};
          return values[random.below(4)];
        });
        for (int64_t r = 0; r < rows; ++r) {
          scene.scale[r] = std::ldexp(1.f, static_cast<int>(random.below(4)) - 2);
          scene.index[r] = static_cast<int32_t>((r ? scene.index[r - 1] : 0) + 1 + random.below(3));
        }
        std::vector<Running> want(scene.lanes());
        for (int64_t lane = 0; lane < scene.lanes(); ++lane) {
          const float starts[] = {-kInfinity, -kInfinity, random.eighth(), special ? kNan : 0.f};
          scene.best[lane] = starts[random.below(4)];
          scene.winner[lane] = std::isinf(scene.best[lane]) ? -1 : 3;
          want[lane] = {scene.best[lane], scene.winner[lane]};
        }
        if (!with_winner) scene.task.winner = nullptr;
        if (with_scale) scene.task.scale = scene.scale.data();
        if (with_index) scene.task.index = scene.index.data();
        std::vector<std::vector<double>> documents;
        for (int64_t r = 0; r < rows; ++r) documents.push_back(scene.row_values(r));
        for (int64_t lane = 0; lane < scene.lanes(); ++lane) {
          const std::vector<double> query = scene.lane_values(lane);
          for (int64_t r = 0; r < rows; ++r) {
            double sum = 0;
            for (int64_t k = 0; k < scene.features; ++k) sum += query[k] * documents[r][k];
            want[lane].meet(with_scale ? sum * scene.scale[r] : sum, scene.token(r));
          }
          if (!with_winner) want[lane].winner = scene.winner[lane];
        }
        isa.score(scene.task);
        for (int64_t lane = 0; lane < scene.lanes(); ++lane) {
          report.same(scene.best[lane], want[lane].best, "score", panels, rows, forms);
          report.same(scene.winner[lane], want[lane].winner, "winner", panels, rows, forms);
        }
      }
}

// Any real numbers: right to rounding, and bitwise what one panel against one row at a time gives.
void check_score_invariance(const Isa& isa, Random& random, Report& report) {
  for (int64_t panels : {1, 2, 3, 5, 8})
    for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 17, 23, 24, 25, 61}) {
      Scene scene(isa, panels, rows, 64);
      scene.fill([&] { return random.normal(); });
      scene.task.scale = scene.scale.data();
      for (int64_t r = 0; r < rows; ++r) scene.scale[r] = std::fabs(random.normal());
      Guarded<float> single(scene.lanes());
      std::fill_n(scene.best.data(), scene.lanes(), -kInfinity);
      std::fill_n(single.data(), scene.lanes(), -kInfinity);
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t r = 0; r < rows; ++r) {
          PanelTask one = scene.task;
          one.panels += panel * scene.words * isa.lanes;
          one.panel_count = one.row_count = 1;
          one.rows += r * scene.stride;
          one.scale += r;
          one.best = single.data() + panel * isa.lanes;
          one.winner = nullptr;
          isa.score(one);
        }
      isa.score(scene.task);
      for (int64_t lane = 0; lane < scene.lanes(); ++lane) {
        report.same(scene.best[lane], single[lane], "score by itself", panels, rows, lane);
        const std::vector<double> query = scene.lane_values(lane);
        double want = -INFINITY, size = 0;
        for (int64_t r = 0; r < rows; ++r) {
          const std::vector<double> document = scene.row_values(r);
          double sum = 0, terms = 0;
          for (int64_t k = 0; k < scene.features; ++k) {
            sum += query[k] * document[k];
            terms += std::fabs(query[k] * document[k]);
          }
          want = std::max(want, sum * scene.scale[r]);
          size = std::max(size, terms * scene.scale[r]);
        }
        report.near(scene.best[lane], want, size * 1e-6, "score of real numbers", panels, rows, lane);
      }
    }
}

bool check_path(const Isa& isa, const char* name) {
  Random random;
  Report report(name);
  check_widen(isa, random, report);
  check_narrow(isa, random, report);
  check_dot(isa, random, report);
  check_inverse_norms(isa, random, report);
  check_accumulate(isa, random, report);
  check_score(isa, random, report);
  check_score_invariance(isa, random, report);
  return report.finish();
}

}  // namespace
}  // namespace check

int main() {
  using maxsim::cpu::Path;
  const char* const names[] = {"", "portable", "avx2", "avx512", "avx512_bf16", "neon"};
  bool passed = true;
  for (int number = 1; number < 6; ++number)
    if (maxsim::cpu::available_paths() >> number & 1) {
      const auto bf16 = maxsim::DType::bf16;
      passed &= check::check_path(maxsim::cpu::choose_isa(static_cast<Path>(number), bf16, bf16), names[number]);
    }
  return passed ? 0 : 1;
}
