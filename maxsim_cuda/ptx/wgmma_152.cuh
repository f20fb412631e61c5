// The product of 152 document rows, which only deep tiles have the registers for.
#pragma once

#include "wgmma.cuh"

namespace maxsim {
namespace ptx {

#define MAXSIM_ACC4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define MAXSIM_ACC20(i) MAXSIM_ACC4(i), MAXSIM_ACC4(i + 4), MAXSIM_ACC4(i + 8), MAXSIM_ACC4(i + 12), MAXSIM_ACC4(i + 16)
#define MAXSIM_WGMMA_152(type, name)                                                                                \
  template <>                                                                                                       \
  struct Wgmma<type, 152> {                                                                                         \
    using Accumulator = float;                                                                                      \
    static __device__ __forceinline__ void run(float (&c)[76], uint64_t query, uint64_t document, int add) {        \
      asm volatile(                                                                                                 \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %78, 0;\n"                                                              \
          "wgmma.mma_async.sync.aligned.m64n152k16.f32." name "." name                                              \
          " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "       \
          "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, "    \
          "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, "    \
          "%61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75}, %76, %77, p, 1, 1, 0, "      \
          "0;\n}\n"                                                                                                 \
          : MAXSIM_ACC20(0), MAXSIM_ACC20(20), MAXSIM_ACC20(40), MAXSIM_ACC4(60), MAXSIM_ACC4(64), MAXSIM_ACC4(68), \
            MAXSIM_ACC4(72)                                                                                         \
          : "l"(query), "l"(document), "r"(add));                                                                   \
    }                                                                                                               \
  };

MAXSIM_WGMMA_152(__nv_bfloat16, "bf16")
MAXSIM_WGMMA_152(__half, "f16")

#undef MAXSIM_ACC4
#undef MAXSIM_ACC20
#undef MAXSIM_WGMMA_152

}  // namespace ptx
}  // namespace maxsim
