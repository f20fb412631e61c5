// Watches memory in the observed build: who may touch what, who wrote it, and what two threads do unordered.
#pragma once

#include "machine.h"

namespace emulator {
namespace observer {

void start(const Launch& launch, char* threadgroup_memory, char* stacks, size_t stack_bytes);
void start_group();
void passed_barrier(uint32_t thread, Scope scope, bool threadgroup_memory, bool device_memory);
void finish(Counts& counts);

}  // namespace observer
}  // namespace emulator
