// Encodes a plan into the command buffer that torch's MPS stream is filling. All decisions were made in plan.cpp.
#include "encode.h"

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <ATen/mps/MPSStream.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#ifndef EMBEDDED_METALLIB_HEADER
#error "kernel-builder compiles the .metal files and defines EMBEDDED_METALLIB_HEADER"
#endif
#include EMBEDDED_METALLIB_HEADER

namespace maxsim {
namespace metal_backend {
namespace {

using Pipeline = id<MTLComputePipelineState>;

[[noreturn]] void fail(const std::string& what, NSError* error) {
  const char* reason = error ? [[error localizedDescription] UTF8String] : nullptr;
  throw std::runtime_error("Metal: " + what + (reason ? std::string(": ") + reason : std::string()));
}

// What lives as long as the process, with and without automatic reference counting.
template <class Object>
Object keep(Object object) {
#if !__has_feature(objc_arc)
  [object retain];
#endif
  return object;
}

// One library and one pipeline for each kernel, made when first needed. torch has one Metal device.
class Pipelines {
 public:
  Pipeline get(id<MTLDevice> device, const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = pipelines_.find(name);
    return found != pipelines_.end() ? found->second : pipelines_[name] = make(device, name);
  }

 private:
  Pipeline make(id<MTLDevice> device, const std::string& name) {
    NSError* error = nil;
    if (!library_) {
      id<MTLLibrary> library = EMBEDDED_METALLIB_NAMESPACE::createLibrary(device, &error);
      if (!library) fail("the embedded library does not load", error);
      library_ = keep(library);
    }
    id<MTLFunction> function = [library_ newFunctionWithName:[NSString stringWithUTF8String:name.c_str()]];
    if (!function) fail("the embedded library has no kernel " + name, nil);
    Pipeline pipeline = [device newComputePipelineStateWithFunction:function error:&error];
    if (!pipeline) fail("no pipeline for " + name, error);
    if ([pipeline threadExecutionWidth] != 32 || [pipeline maxTotalThreadsPerThreadgroup] < kThreads)
      fail("this GPU does not run " + name + " with " + std::to_string(kThreads) + " threads in simdgroups of 32", nil);
    return pipeline;  // "new" gave it to us
  }

  std::mutex mutex_;
  id<MTLLibrary> library_ = nil;
  std::unordered_map<std::string, Pipeline> pipelines_;
};

void encode_dispatch(id<MTLComputeCommandEncoder> encoder, Pipeline pipeline, const Dispatch& dispatch,
                     const RoleBuffers& buffers) {
  [encoder setComputePipelineState:pipeline];
  std::visit([&](const auto& params) { [encoder setBytes:&params length:sizeof(params) atIndex:kParams]; },
             dispatch.params);
  for (const Binding& binding : dispatch.bindings) {
    const RoleBuffer& buffer = buffers[static_cast<size_t>(binding.role)];
    [encoder setBuffer:__builtin_bit_cast(id<MTLBuffer>, buffer.storage)
                offset:static_cast<NSUInteger>(buffer.offset + binding.offset)
               atIndex:binding.index];
  }
  if (dispatch.threadgroup_bytes) [encoder setThreadgroupMemoryLength:dispatch.threadgroup_bytes atIndex:0];
  [encoder dispatchThreadgroups:MTLSizeMake(dispatch.grid[0], dispatch.grid[1], 1)
          threadsPerThreadgroup:MTLSizeMake(kThreads, 1, 1)];
}

}  // namespace

void encode(const Plan& plan, const RoleBuffers& buffers) {
  static Pipelines* const pipelines = new Pipelines;  // never destroyed: threads may outlive static objects
  @autoreleasepool {
    at::mps::MPSStream* const stream = at::mps::getCurrentMPSStream();
    std::vector<Pipeline> found;
    for (const Dispatch& dispatch : plan.dispatches) found.push_back(pipelines->get(stream->device(), dispatch.kernel));
    const Plan* const all = &plan;
    const RoleBuffers* const where = &buffers;
    const std::vector<Pipeline>* const which = &found;
    // torch encodes on this queue alone. Its encoder is serial: a dispatch sees what the one before has written.
    dispatch_sync(stream->queue(), ^{
      id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
      for (size_t i = 0; i < all->dispatches.size(); ++i)
        encode_dispatch(encoder, (*which)[i], all->dispatches[i], *where);
    });
  }
}

}  // namespace metal_backend
}  // namespace maxsim
