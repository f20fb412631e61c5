// Stands in for encode.mm, or calls it: the plan's tensors become memory of the emulated GPU, and its results come
// back.
#include "../../../maxsim_metal/encode.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "dispatch.h"

#ifdef EMULATOR_THROUGH_OBJC
#include "../objc/fake.h"
#endif

namespace maxsim {
namespace metal_backend {
namespace {

constexpr int kRoles = static_cast<int>(Role::count);
const char* const kRoleNames[] = {"queries",
                                  "documents",
                                  "query extents",
                                  "document extents",
                                  "query mask",
                                  "document mask",
                                  "query ids",
                                  "document ids",
                                  "scores",
                                  "argmax",
                                  "score gradients",
                                  "sorted query ids",
                                  "query order",
                                  "sorted document ids",
                                  "document order",
                                  "query gradients",
                                  "document gradients",
                                  "workspace",
                                  "codes",
                                  "centroids",
                                  "bucket weights",
                                  "query scales",
                                  "document scales",
                                  "document minima",
                                  "parts",
                                  "centroid scores",
                                  "probed centroids"};
static_assert(sizeof(kRoleNames) / sizeof(*kRoleNames) == kRoles, "every role has a name");

// A role's tensor in the GPU's memory: a copy of exactly its bytes, at the same distance from an aligned start, so
// that the sanitizer knows where it ends, and so that what the kernels do not write does not look written.
struct Resident {
  std::unique_ptr<char, void (*)(void*)> block{nullptr, free};
  int64_t shift = 0;
  emulator::Memory memory;
  std::vector<uint8_t> initialised;

  void fill(Role role, const RoleBuffer& buffer, bool output, bool zeroed) {
    shift = buffer.offset % 16;
    block.reset(static_cast<char*>(malloc(shift + buffer.bytes)));
    memory.name = kRoleNames[static_cast<int>(role)];
    memory.data = block.get() + shift;
    memory.bytes = buffer.bytes;
    memory.writable = output;
    initialised.assign(buffer.bytes, !output || zeroed);
    memory.initialised = &initialised;
    if (output && !zeroed)
      std::memset(memory.data, 0xff, buffer.bytes);
    else if (buffer.bytes)
      std::memcpy(memory.data, static_cast<const char*>(buffer.storage) + buffer.offset, buffer.bytes);
  }
};

#ifndef EMULATOR_THROUGH_OBJC
void run(const Plan& plan, Resident* residents) {
  for (const Dispatch& dispatch : plan.dispatches) {
    emulator::Encoded encoded;
    encoded.kernel = dispatch.kernel;
    std::visit(
        [&](const auto& params) {
          const char* bytes = reinterpret_cast<const char*>(&params);
          encoded.constants.assign(bytes, bytes + sizeof(params));
        },
        dispatch.params);
    for (const Binding& binding : dispatch.bindings) {
      Resident& resident = residents[static_cast<int>(binding.role)];
      if (!encoded.buffers.emplace(binding.index, emulator::Bound{&resident.memory, binding.offset}).second)
        throw std::runtime_error("two buffers at index " + std::to_string(binding.index));
    }
    std::copy(dispatch.grid, dispatch.grid + 2, encoded.grid);
    encoded.threads = kThreads;
    encoded.threadgroup_bytes = dispatch.threadgroup_bytes;
    emulator::dispatch(encoded);
  }
}
#else
void run(const Plan& plan, Resident* residents) {
  RoleBuffers buffers;
  std::vector<std::unique_ptr<FakeBuffer>> objects;
  for (int r = 0; r < kRoles; ++r) {
    if (!residents[r].block) continue;
    objects.push_back(std::make_unique<FakeBuffer>(residents[r].memory, residents[r].shift));
    buffers[r] = {objects.back().get(), residents[r].shift, residents[r].memory.bytes};
  }
  encode_objc(plan, buffers);
}
#endif

}  // namespace

void encode(const Plan& plan, const RoleBuffers& buffers) {
  Resident residents[kRoles];
  const auto any_ends_in = [&](const std::string& suffix) {
    return std::any_of(plan.dispatches.begin(), plan.dispatches.end(), [&](const Dispatch& dispatch) {
      const std::string& name = dispatch.kernel;
      return name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
    });
  };
  const bool writes_argmax = any_ends_in("_argmax"), writes_parts = any_ends_in("_parts");
  for (int r = 0; r < kRoles; ++r) {
    const Role role = static_cast<Role>(r);
    const bool zeroed = role == Role::grad_queries || role == Role::grad_documents;
    const bool output = zeroed || role == Role::scores || role == Role::workspace ||
                        (role == Role::argmax && writes_argmax) || (role == Role::parts && writes_parts);
    if (buffers[r].storage) residents[r].fill(role, buffers[r], output, zeroed);
  }
  emulator::report = emulator::Report{};
  run(plan, residents);
  for (int r = 0; r < kRoles; ++r) {
    emulator::report.read[r] = residents[r].memory.read_bytes;
    emulator::report.written[r] = residents[r].memory.written_bytes;
    if (!residents[r].memory.writable) continue;
#ifdef EMULATOR_OBSERVES
    if (!emulator::settings.groups && static_cast<Role>(r) != Role::workspace)
      for (size_t i = 0; i < residents[r].initialised.size(); ++i)
        if (!residents[r].initialised[i])
          throw std::runtime_error("emulated GPU: nobody wrote byte " + std::to_string(i) + " of " +
                                   residents[r].memory.name);
#endif
    if (buffers[r].bytes)
      std::memcpy(static_cast<char*>(buffers[r].storage) + buffers[r].offset, residents[r].memory.data,
                  buffers[r].bytes);
  }
}

}  // namespace metal_backend
}  // namespace maxsim
