// What the lanes of a simdgroup do together, once all have arrived.
#include "machine.h"

namespace emulator {
namespace {

template <class T>
Lanes<T>& lane(void* const* operands, int i) {
  return *static_cast<Lanes<T>*>(operands[i]);
}

}  // namespace

void any_lane(void* const* operands) {
  bool any = false;
  for (int i = 0; i < kSimdWidth; ++i) any |= lane<bool>(operands, i).mine;
  for (int i = 0; i < kSimdWidth; ++i) lane<bool>(operands, i).result = any;
}

void shuffle_words(void* const* operands) {
  const auto at = [&](int i) { return static_cast<Shuffle<uint32_t>*>(operands[i]); };
  for (int i = 0; i < kSimdWidth; ++i) at(i)->result = at(at(i)->from)->mine;
}

void sum_before_lane(void* const* operands) {
  uint32_t sum = 0;
  for (int i = 0; i < kSimdWidth; ++i) {
    lane<uint32_t>(operands, i).result = sum;
    sum += lane<uint32_t>(operands, i).mine;
  }
}

void sum_lanes(void* const* operands) {
  uint32_t sum = 0;
  for (int i = 0; i < kSimdWidth; ++i) sum += lane<uint32_t>(operands, i).mine;
  for (int i = 0; i < kSimdWidth; ++i) lane<uint32_t>(operands, i).result = sum;
}

void add_lanes(void* const* operands) {
  float part[kSimdWidth];
  for (int i = 0; i < kSimdWidth; ++i) part[i] = lane<float>(operands, i).mine;
  for (int width = kSimdWidth / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  for (int i = 0; i < kSimdWidth; ++i) lane<float>(operands, i).result = part[0];
}

void multiply(void* const* operands) {
  float a[8][8], b[8][8], sum[8][8];
  for (int i = 0; i < kSimdWidth; ++i)
    for (int e = 0; e < 2; ++e) {
      const Place at = place_of(i, e);
      const Multiply& mine = *static_cast<const Multiply*>(operands[i]);
      a[at.row][at.column] = mine.a[e];
      b[at.row][at.column] = mine.b[e];
      sum[at.row][at.column] = mine.sum[e];
    }
  for (int k = 0; k < 8; ++k)
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column)
        sum[row][column] = __builtin_fmaf(a[row][k], b[k][column], sum[row][column]);
  for (int i = 0; i < kSimdWidth; ++i)
    for (int e = 0; e < 2; ++e) {
      const Place at = place_of(i, e);
      static_cast<Multiply*>(operands[i])->sum[e] = sum[at.row][at.column];
    }
  count_multiply();
}

}  // namespace emulator
