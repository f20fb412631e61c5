// The messages, functions and runtime calls that encode.mm ends in. Every rule of Metal's API validation that applies
// to a compute encoder is checked here; a message to the wrong object, or one that no fake answers, is an error.
#include "fake.h"

#include <ATen/mps/MPSStream.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

using emulator::Encoded;

struct Selector {  // as the GNU runtime lays it out
  const char* name;
  const char* types;
};

struct FakeString : FakeObject {
  std::string text;
};
struct FakeFunction : FakeObject {
  std::string name;
};
struct Size {
  unsigned long width, height, depth;
};

FakeObject pool_class{"NSAutoreleasePool"}, string_class{"NSString"}, pool{"NSAutoreleasePool"};
FakeObject the_device{"MTLDevice"}, library{"MTLLibrary"}, encoder{"MTLComputeCommandEncoder"};
FakeString reason{{"NSString"}, "the fake was told to"};
FakeObject error{"NSError"};

// What the tests set and read.
struct Fake {
  int64_t libraries = 0, pipelines = 0;  // made so far
  int64_t fail_library = 0, fail_pipeline = 0, simd_width = 32;
  int64_t pools = 0;  // open
} fake;

struct Encoder {
  Encoded encoded;
  bool open = false;  // between the stream's queue taking and giving back control
} current;

void require(bool holds, const std::string& rule) {
  if (!holds) throw std::runtime_error("Metal API validation: " + rule);
}

template <class Object>
Object* expect(FakeObject* object, const char* what) {
  require(object && std::strcmp(object->what, what) == 0, std::string("a message for ") + what + " went elsewhere");
  return static_cast<Object*>(object);
}

FakeObject* same(FakeObject* self, Selector*) { return self; }
FakeObject* new_pool(FakeObject* self, Selector*) {
  expect<FakeObject>(self, "NSAutoreleasePool");
  ++fake.pools;
  return &pool;
}
void drain(FakeObject* self, Selector*) {
  expect<FakeObject>(self, "NSAutoreleasePool");
  --fake.pools;
}
FakeObject* string_with(FakeObject*, Selector*, const char* text) {
  static std::vector<std::unique_ptr<FakeString>> strings;
  strings.push_back(std::make_unique<FakeString>(FakeString{{"NSString"}, text}));
  return strings.back().get();
}
const char* utf8(FakeObject* self, Selector*) { return expect<FakeString>(self, "NSString")->text.c_str(); }
FakeObject* description(FakeObject* self, Selector*) {
  expect<FakeObject>(self, "NSError");
  return &reason;
}
FakeObject* new_function(FakeObject* self, Selector*, FakeObject* name) {
  expect<FakeObject>(self, "MTLLibrary");
  const std::string& text = expect<FakeString>(name, "NSString")->text;
  return emulator::find_kernel(text) ? new FakeFunction{{"MTLFunction"}, text} : nullptr;
}
FakeObject* new_pipeline(FakeObject* self, Selector*, FakeObject* function, FakeObject** failure) {
  expect<FakeObject>(self, "MTLDevice");
  if (fake.fail_pipeline) {
    *failure = &error;
    return nullptr;
  }
  ++fake.pipelines;
  return new FakeFunction{{"MTLComputePipelineState"}, expect<FakeFunction>(function, "MTLFunction")->name};
}
unsigned long simd_width(FakeObject*, Selector*) { return static_cast<unsigned long>(fake.simd_width); }
unsigned long most_threads(FakeObject*, Selector*) { return emulator::kMaxThreads; }

Encoded& encoding(FakeObject* self) {
  expect<FakeObject>(self, "MTLComputeCommandEncoder");
  require(current.open, "encoding happens on the stream's queue");
  return current.encoded;
}
void set_pipeline(FakeObject* self, Selector*, FakeObject* state) {
  encoding(self).kernel = expect<FakeFunction>(state, "MTLComputePipelineState")->name;
}
void set_bytes(FakeObject* self, Selector*, const void* bytes, unsigned long length, unsigned long index) {
  require(length > 0 && length <= 4096, "setBytes takes up to 4 KB");
  require(index == 0, "constants are argument 0");
  const char* from = static_cast<const char*>(bytes);
  encoding(self).constants.assign(from, from + length);
}
void set_buffer(FakeObject* self, Selector*, FakeObject* object, unsigned long offset, unsigned long index) {
  FakeBuffer* buffer = expect<FakeBuffer>(object, "MTLBuffer");
  encoding(self).buffers[static_cast<uint32_t>(index)] = {&buffer->memory,
                                                          static_cast<int64_t>(offset) - buffer->shift};
}
void set_threadgroup_memory(FakeObject* self, Selector*, unsigned long length, unsigned long index) {
  require(index == 0 && length % 16 == 0, "threadgroup memory comes in units of 16 bytes");
  encoding(self).threadgroup_bytes = static_cast<int32_t>(length);
}
void dispatch_threadgroups(FakeObject* self, Selector*, Size groups, Size threads) {
  Encoded& encoded = encoding(self);
  require(!encoded.kernel.empty(), "a pipeline has to be set");
  require(groups.width && groups.height && groups.depth && threads.width, "an empty grid");
  require(threads.height == 1 && threads.depth == 1, "threadgroups have one dimension here");
  encoded.grid[0] = static_cast<uint32_t>(groups.width);
  encoded.grid[1] = static_cast<uint32_t>(groups.height);
  encoded.grid[2] = static_cast<uint32_t>(groups.depth);
  encoded.threads = static_cast<uint32_t>(threads.width);
  emulator::dispatch(encoded);
  encoded = Encoded{};  // Metal would keep all that was set: nothing here may rely on it
}

struct Method {
  const char* name;
  void* implementation;
};
#define METHOD(name, function) {name, reinterpret_cast<void*>(&function)}
const Method methods[] = {
    METHOD("alloc", same),
    METHOD("init", new_pool),
    METHOD("drain", drain),
    METHOD("retain", same),
    METHOD("stringWithUTF8String:", string_with),
    METHOD("UTF8String", utf8),
    METHOD("localizedDescription", description),
    METHOD("newFunctionWithName:", new_function),
    METHOD("newComputePipelineStateWithFunction:error:", new_pipeline),
    METHOD("threadExecutionWidth", simd_width),
    METHOD("maxTotalThreadsPerThreadgroup", most_threads),
    METHOD("setComputePipelineState:", set_pipeline),
    METHOD("setBytes:length:atIndex:", set_bytes),
    METHOD("setBuffer:offset:atIndex:", set_buffer),
    METHOD("setThreadgroupMemoryLength:atIndex:", set_threadgroup_memory),
    METHOD("dispatchThreadgroups:threadsPerThreadgroup:", dispatch_threadgroups),
};

struct Block {  // as the compiler lays it out
  void* isa;
  int flags, reserved;
  void (*invoke)(void* block);
};

}  // namespace

extern "C" {

// The runtime. Selectors are left as the compiler has written them, so that they can be told by name.
void* objc_msg_lookup(FakeObject* receiver, Selector* selector) {
  for (const Method& method : methods)
    if (std::strcmp(method.name, selector->name) == 0 && receiver) return method.implementation;
  throw std::runtime_error(std::string("nobody answers ") + selector->name);
}
FakeObject* objc_lookup_class(const char* name) {
  return std::strcmp(name, "NSString") == 0 ? &string_class : &pool_class;
}
void __objc_exec_class(void*) {}
int __objc_class_name_NSString, __objc_class_name_NSAutoreleasePool;
void* _NSConcreteStackBlock[32];
int __gxx_personality_v0(int, int, uint64_t, void*, void*);
int __gnu_objc_personality_v0(int version, int actions, uint64_t kind, void* exception, void* context) {
  return __gxx_personality_v0(version, actions, kind, exception, context);
}

void dispatch_sync(dispatch_queue_t, void* block) {
  current.open = true;
  try {
    static_cast<Block*>(block)->invoke(block);
  } catch (...) {
    current = Encoder{};
    throw;
  }
  current = Encoder{};
}

FakeObject* fake_library(FakeObject* of, FakeObject** failure) {
  expect<FakeObject>(of, "MTLDevice");
  if (fake.fail_library) {
    *failure = &error;
    return nullptr;
  }
  ++fake.libraries;
  return &library;
}

__attribute__((visibility("default"))) void* fake_state() { return &fake; }
}

namespace at::mps {

MPSStream* getCurrentMPSStream() {
  alignas(MPSStream) static char stream[sizeof(MPSStream)];  // its members are never looked at
  return reinterpret_cast<MPSStream*>(stream);
}
MTLDevice_t MPSStream::device() const { return &the_device; }
MTLComputeCommandEncoder_t MPSStream::commandEncoder() { return &encoder; }

}  // namespace at::mps
