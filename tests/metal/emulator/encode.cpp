// Runs a plan on the emulated GPU: what encode.mm does with a command encoder, and with the same arguments.
#include "../../../maxsim_metal/encode.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "kernels.h"
#include "machine.h"

namespace maxsim {
namespace metal_backend {
namespace {

constexpr int kRoles = static_cast<int>(Role::count);
const char* const kRoleNames[kRoles] = {"queries",          "documents",           "query extents",
                                        "document extents", "query mask",          "document mask",
                                        "query ids",        "document ids",        "scores",
                                        "argmax",           "score gradients",     "sorted query ids",
                                        "query order",      "sorted document ids", "document order",
                                        "query gradients",  "document gradients",  "workspace"};

// A role's tensor in the GPU's memory: a copy of exactly its bytes, at the same distance from a page's start, so
// that the sanitizer knows where it ends, and so that what the kernels do not write does not look written.
struct Resident {
  std::unique_ptr<char, void (*)(void*)> block{nullptr, free};
  emulator::Memory memory;
  std::vector<uint8_t> initialised;

  void fill(Role role, const RoleBuffer& buffer, bool output, bool zeroed) {
    const int64_t shift = buffer.offset % 256;
    block.reset(static_cast<char*>(aligned_alloc(256, (shift + buffer.bytes + 255) / 256 * 256 + 256)));
    const int64_t exact = shift + buffer.bytes;
    block.reset(static_cast<char*>(realloc(block.release(), std::max<int64_t>(exact, 1))));
    if (reinterpret_cast<uintptr_t>(block.get()) % 16) throw std::runtime_error("unaligned memory");
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

const EmulatedKernel& find_kernel(const std::string& name) {
  for (auto table = kernel_tables; *table; ++table)
    for (const EmulatedKernel* kernel = *table; kernel->name; ++kernel)
      if (name == kernel->name) return *kernel;
  throw std::runtime_error("no kernel named " + name);
}

}  // namespace

EmulatorSettings settings;
EmulatorReport report;

void encode(const Plan& plan, const RoleBuffers& given) {
  RoleBuffers buffers = given;
  Resident residents[kRoles];
  const auto is_output = [](Role role) {
    return role == Role::scores || role == Role::argmax || role == Role::grad_queries || role == Role::grad_documents ||
           role == Role::workspace;
  };
  bool writes_argmax = false;
  for (const Dispatch& dispatch : plan.dispatches)
    writes_argmax |= dispatch.kernel.find("_argmax") != std::string::npos;
  const auto written = [&](Role role) { return is_output(role) && (role != Role::argmax || writes_argmax); };
  for (int r = 0; r < kRoles; ++r) {
    const Role role = static_cast<Role>(r);
    if (buffers[r].storage || role == Role::workspace) {
      if (role == Role::workspace) buffers[r] = {nullptr, 0, plan.workspace_bytes};
      residents[r].fill(role, buffers[r], written(role), role == Role::grad_queries || role == Role::grad_documents);
    }
  }
  report = EmulatorReport{};
  for (const Dispatch& dispatch : plan.dispatches) {
    const EmulatedKernel& kernel = find_kernel(dispatch.kernel);
    emulator::Launch launch;
    launch.kernel = kernel.run;
    launch.grid[0] = dispatch.grid[0];
    launch.grid[1] = dispatch.grid[1];
    launch.threads = kThreads;
    launch.threadgroup_bytes = dispatch.threadgroup_bytes;
    if (settings.groups) {
      launch.first_group[1] = settings.first_group;
      launch.sampled[1] = settings.groups;
    }
    emulator::Memory constants;
    std::vector<char> bytes(std::visit([](const auto& p) { return sizeof(p); }, dispatch.params));
    std::visit([&](const auto& p) { std::memcpy(bytes.data(), &p, sizeof(p)); }, dispatch.params);
    constants.name = "the constants";
    constants.data = bytes.data();
    constants.bytes = static_cast<int64_t>(bytes.size());
    launch.memory.push_back(&constants);
    launch.buffers[kParams] = constants.data;
    uint32_t bound = 1u << kParams;
    for (const Binding& binding : dispatch.bindings) {
      Resident& resident = residents[static_cast<int>(binding.role)];
      if (!resident.block)
        throw std::runtime_error("a plan binds " + std::string(kRoleNames[int(binding.role)]) +
                                 ", which the call does not have");
      if (binding.offset > resident.memory.bytes) throw std::runtime_error("a binding starts behind its buffer");
      launch.memory.push_back(&resident.memory);
      launch.buffers[binding.index] = resident.memory.data + binding.offset;
      bound |= 1u << binding.index;
    }
    if (bound != kernel.buffers) throw std::runtime_error("the arguments bound are not those of " + dispatch.kernel);
    const emulator::Counts counts = emulator::run(launch);
    report.dispatches += 1;
    report.threadgroups += int64_t{dispatch.grid[0]} *
                           (settings.groups ? std::min<int64_t>(settings.groups, dispatch.grid[1]) : dispatch.grid[1]);
    report.multiplies += counts.multiplies;
    report.barriers += counts.barriers;
    report.threadgroup_read += counts.threadgroup_read;
    report.threadgroup_written += counts.threadgroup_written;
  }
  for (int r = 0; r < kRoles; ++r) {
    report.read[r] = residents[r].memory.read_bytes;
    report.written[r] = residents[r].memory.written_bytes;
    if (!residents[r].memory.writable) continue;
#ifdef EMULATOR_OBSERVES
    if (!settings.groups && static_cast<Role>(r) != Role::workspace)
      for (size_t i = 0; i < residents[r].initialised.size(); ++i)
        if (!residents[r].initialised[i])
          throw std::runtime_error("emulated GPU: nobody wrote byte " + std::to_string(i) + " of " +
                                   residents[r].memory.name);
#endif
    if (buffers[r].storage && buffers[r].bytes)
      std::memcpy(static_cast<char*>(buffers[r].storage) + buffers[r].offset, residents[r].memory.data,
                  buffers[r].bytes);
  }
}

}  // namespace metal_backend
}  // namespace maxsim

using maxsim::metal_backend::report;
using maxsim::metal_backend::settings;

// For ctypes: which rows of the grid to run (all if `groups` is 0), and how matrices lie in a simdgroup.
extern "C" __attribute__((visibility("default"))) void emulator_set(uint32_t first_group, uint32_t groups, int layout) {
  settings = {first_group, groups};
  emulator::matrix_layout = layout ? emulator::Layout::other : emulator::Layout::apple;
}
extern "C" __attribute__((visibility("default"))) const void* emulator_report() { return &report; }
