// Climbs the ladder: every rung on a shape that arithmetic bounds and on one that memory bounds, compared with the
// first rung, which is itself compared with sums in double on the host. One JSON line a rung and shape.
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "ladder.h"

namespace ladder {
namespace {

constexpr double kAllowedError = 1e-5;  // a token missed or met wrongly shows at 1e-3
constexpr int kFlushBytes = 256 << 20;  // more than L2 holds
constexpr int kTimes = 15;

__global__ void fill(__nv_bfloat16* to, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    h = (h ^ h >> 16) * 0x85ebca6b;
    h = (h ^ h >> 13) * 0xc2b2ae35;
    h ^= h >> 16;
    to[i] = __float2bfloat16((h & 0xffff) / 65536.f + (h >> 16) / 65536.f - 1.f);
  }
}

template <class T>
T* allocate(int64_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(memory);
}

template <class T>
std::vector<T> fetch(const T* from, int64_t count) {
  std::vector<T> to(count);
  check(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return to;
}

// Milliseconds on the device, L2 flushed before each call: the median.
double median_ms(const std::function<void()>& call) {
  static char* flush = allocate<char>(kFlushBytes);
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  std::vector<float> taken;
  for (int i = 0; i < kTimes; ++i) {
    check(cudaMemsetAsync(flush, i, kFlushBytes), "flush");
    check(cudaEventRecord(start), "event");
    call();
    check(cudaEventRecord(stop), "event");
    check(cudaEventSynchronize(stop), "call");
    taken.emplace_back();
    check(cudaEventElapsedTime(&taken.back(), start, stop), "event");
  }
  std::sort(taken.begin(), taken.end());
  return taken[taken.size() / 2];
}

// One score in double.
double score(const Problem& p, int query, int document) {
  const auto q = fetch(p.queries + int64_t{query} * kQueryTokens * kDim, kQueryTokens * kDim);
  const int64_t length = int64_t{p.document_tokens} * kDim;
  const auto d = fetch(p.documents + document * length, length);
  double sum = 0;
  for (int i = 0; i < kQueryTokens; ++i) {
    double best = -INFINITY;
    for (int j = 0; j < p.document_tokens; ++j) {
      double dot = 0;
      for (int k = 0; k < kDim; ++k)
        dot += double{__bfloat162float(q[i * kDim + k])} * double{__bfloat162float(d[j * kDim + k])};
      best = std::max(best, dot);
    }
    sum += best;
  }
  return sum;
}

struct Shape {
  const char* name;
  int queries, documents;
};
struct Rung {
  const char* name;
  void (*run)(const Problem&);
};

constexpr Shape kShapes[] = {{"math", 256, 256}, {"memory", 1, 10000}};
constexpr Rung kRungs[] = {{"naive", naive},       {"mma.sync", mma_sync},   {"wgmma", wgmma},
                           {"TMA ring", tma_ring}, {"ping-pong", ping_pong}, {"query reuse", query_reuse}};
constexpr int kDocumentTokens = 300;

// False when a rung is wrong: then it is not timed.
bool climb(const Shape& shape) {
  const int64_t query_count = int64_t{shape.queries} * kQueryTokens * kDim;
  const int64_t document_count = int64_t{shape.documents} * kDocumentTokens * kDim;
  const int64_t score_count = int64_t{shape.queries} * shape.documents;
  auto* queries = allocate<__nv_bfloat16>(query_count);
  auto* documents = allocate<__nv_bfloat16>(document_count);
  fill<<<1024, 256>>>(queries, query_count, 1);
  fill<<<1024, 256>>>(documents, document_count, 2);
  const Problem problem{queries,       documents,       allocate<float>(score_count),
                        shape.queries, shape.documents, kDocumentTokens};
  std::vector<float> truth;
  bool right = true;
  for (const Rung& rung : kRungs) {
    check(cudaMemset(problem.scores, 0xff, score_count * sizeof(float)), "cudaMemset");  // NaN: every score is written
    rung.run(problem);
    check(cudaDeviceSynchronize(), rung.name);
    const auto scores = fetch(problem.scores, score_count);
    double error = 0;
    const auto compare = [&](double got, double want) {
      const double off = std::fabs(got - want) / std::fabs(want);
      error = off <= error ? error : off;  // keeps a NaN
    };
    if (truth.empty()) {
      for (int i = 0; i < 16; ++i) {
        const int query = i * 7919 % shape.queries, document = i * 104729 % shape.documents;
        compare(scores[int64_t{query} * shape.documents + document], score(problem, query, document));
      }
      truth = scores;
    } else {
      for (int64_t i = 0; i < score_count; ++i) compare(scores[i], truth[i]);
    }
    if (!(error <= kAllowedError)) {
      fprintf(stderr, "%s on %s is %.1e off\n", rung.name, shape.name, error);
      right = false;
      continue;
    }
    const double ms = median_ms([&] { rung.run(problem); });
    const double flops = 2.0 * score_count * kQueryTokens * kDocumentTokens * kDim;
    const double bytes = 2.0 * (query_count + document_count) + 4.0 * score_count;
    printf(
        "{\"rung\": \"%s\", \"shape\": \"%s\", \"queries\": %d, \"documents\": %d, \"query_tokens\": %d, "
        "\"document_tokens\": %d, \"ms\": %.6g, \"TFLOPs\": %.6g, \"TBps\": %.6g, \"err\": %.3g}\n",
        rung.name, shape.name, shape.queries, shape.documents, kQueryTokens, kDocumentTokens, ms, flops / ms / 1e9,
        bytes / ms / 1e9, error);
    fflush(stdout);
  }
  check(cudaFree(queries), "cudaFree");
  check(cudaFree(documents), "cudaFree");
  check(cudaFree(problem.scores), "cudaFree");
  return right;
}

}  // namespace
}  // namespace ladder

int main() {
  using namespace ladder;
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  printf("{\"gpu\": \"%s\", \"sms\": %d}\n", device.name, device.multiProcessorCount);
  float* sink = allocate<float>(1);
  double flops = 0;
  const double ms = median_ms([&] { flops = mma_sync_alone(sink); });
  printf("{\"rung\": \"mma.sync alone\", \"shape\": \"registers\", \"ms\": %.6g, \"TFLOPs\": %.6g}\n", ms,
         flops / ms / 1e9);
  bool right = true;
  for (const Shape& shape : kShapes) right &= climb(shape);
  return right ? 0 : 1;
}
