#include "model/kv_cache.h"

#include <cstdlib>
#include <new>
#include <string>

#include "common/check.h"

namespace moiety {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

KvCache::KvCache(const Architecture& architecture, DType dtype, std::int32_t num_blocks)
    : dtype_(dtype),
      num_blocks_(num_blocks),
      num_kv_heads_(architecture.num_kv_heads),
      head_dim_(architecture.head_dim),
      bytes_per_tensor_(aligned(static_cast<std::size_t>(num_blocks) * kernels::kKvBlockSize *
                                static_cast<std::size_t>(architecture.kv_size()) *
                                dtype_bytes(dtype))) {
  MOIETY_CHECK(num_blocks > 0, "a KV cache needs at least one block");
  for (std::int32_t layer = 0; layer < architecture.num_layers(); ++layer) {
    storage_.emplace_back(
        static_cast<std::byte*>(std::calloc(1, 2 * bytes_per_tensor_ + kAlignment)));
    if (storage_.back() == nullptr) throw std::bad_alloc();
  }
  free_.reserve(static_cast<std::size_t>(num_blocks));
  for (std::int32_t block = num_blocks; block-- > 0;) free_.push_back(block);
}

void KvCache::Free::operator()(std::byte* memory) const { std::free(memory); }

std::size_t KvCache::block_bytes(const Architecture& architecture, DType dtype) {
  return static_cast<std::size_t>(architecture.num_layers()) * 2 * kernels::kKvBlockSize *
         static_cast<std::size_t>(architecture.kv_size()) * dtype_bytes(dtype);
}

std::int32_t KvCache::blocks_for(std::int64_t num_tokens) {
  return static_cast<std::int32_t>((num_tokens + kernels::kKvBlockSize - 1) /
                                   kernels::kKvBlockSize);
}

Result<std::vector<std::int32_t>> KvCache::allocate(std::int32_t count) {
  if (count > num_free()) {
    return fail(ErrorCode::kResourceExhausted, "the KV cache has " + std::to_string(num_free()) +
                                                   " free blocks, " + std::to_string(count) +
                                                   " are needed");
  }
  std::vector<std::int32_t> blocks(free_.end() - count, free_.end());
  free_.resize(free_.size() - static_cast<std::size_t>(count));
  return blocks;
}

void KvCache::release(std::span<const std::int32_t> blocks) {
  free_.insert(free_.end(), blocks.begin(), blocks.end());
  MOIETY_CHECK(num_free() <= num_blocks_, "more KV blocks released than allocated");
}

kernels::KvLayer KvCache::layer(std::int32_t index) {
  void* memory = storage_.at(static_cast<std::size_t>(index)).get();
  std::size_t space = 2 * bytes_per_tensor_ + kAlignment;
  auto* base =
      static_cast<std::byte*>(std::align(kAlignment, 2 * bytes_per_tensor_, memory, space));
  return {dtype_, base, base + bytes_per_tensor_, num_kv_heads_, head_dim_};
}

}  // namespace moiety
