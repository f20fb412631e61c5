// Preloaded into a process of the harness: knows how much malloc has handed out, and the most since the last reset.
// It sees every allocation of torch, C++, Rust and Python alike, to the byte; glibc only.
#include <errno.h>
#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

std::atomic<int64_t> allocated{0}, highest{0};

void* taken(void* block) {
  const int64_t size = static_cast<int64_t>(malloc_usable_size(block));  // 0 for null
  const int64_t now = allocated.fetch_add(size) + size;
  int64_t seen = highest.load();
  while (now > seen && !highest.compare_exchange_weak(seen, now)) {
  }
  return block;
}

void* given_back(void* block) {
  allocated.fetch_sub(static_cast<int64_t>(malloc_usable_size(block)));
  return block;
}

}  // namespace

extern "C" {

int64_t count_malloc_highest() { return highest.load(); }

// Makes what is allocated now the highest point, and returns it.
int64_t count_malloc_reset() {
  highest.store(allocated.load());
  return highest.load();
}

void* malloc(size_t size) { return taken(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { return taken(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) { return taken(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return taken(__libc_memalign(alignment, size)); }
void free(void* block) { __libc_free(given_back(block)); }

void* realloc(void* block, size_t size) {
  const int64_t before = static_cast<int64_t>(malloc_usable_size(block));
  void* moved = __libc_realloc(block, size);
  if (moved || size == 0) allocated.fetch_sub(before);
  return taken(moved);
}

int posix_memalign(void** out, size_t alignment, size_t size) {
  void* block = __libc_memalign(alignment, size);
  if (!block) return ENOMEM;
  *out = taken(block);
  return 0;
}
}
