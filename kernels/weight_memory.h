#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace moiety::kernels {

/// Memory for packed weights: `size` bytes, 64-byte aligned, in huge pages where the system gives
/// them, which is what lets weights stream at the memory's speed. Contents are undefined. Matrices
/// share regions of 64 MiB (more for a larger one); memory that was freed goes back to the system
/// at once. Any thread. Throws std::bad_alloc.
std::byte* allocate_weights(std::size_t size);
void free_weights(std::byte* memory) noexcept;

/// What is allocated now, for benches that read the very memory that weights lie in. Valid until
/// the next call of the two functions above.
std::vector<std::span<const std::byte>> weights_in_use();

}  // namespace moiety::kernels
