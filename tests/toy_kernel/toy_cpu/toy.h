#pragma once

#include <cstdint>

namespace toy {

void increment(float* values, int64_t count);
void increment_cuda(float* values, int64_t count, void* stream);

}  // namespace toy
