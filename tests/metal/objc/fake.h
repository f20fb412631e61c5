// A Metal that runs what is encoded at once, on the emulated GPU. Its objects answer the messages that encode.mm sends.
#pragma once

#include "../../../maxsim_metal/encode.h"
#include "../emulator/dispatch.h"

// Every object of the fake; `what` is its class.
struct FakeObject {
  const char* what;
};

// An MTLBuffer whose bytes are `memory`, from `shift` on.
struct FakeBuffer : FakeObject {
  FakeBuffer(emulator::Memory& memory, int64_t shift) : FakeObject{"MTLBuffer"}, memory(memory), shift(shift) {}
  emulator::Memory& memory;
  int64_t shift;
};

namespace maxsim {
namespace metal_backend {
void encode_objc(const Plan& plan, const RoleBuffers& buffers);  // encode.mm's
}
}  // namespace maxsim
