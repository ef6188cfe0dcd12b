#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/implementations.h"

/// Sums, rounding to BF16, fixed point, quantising and the KV cache's layout (kv_layout.h) in
/// portable loops that compilers vectorise, compiled once per instruction set: `Unit` is a type of
/// the including file's unnamed namespace, so that no copy is shared between files.
namespace moiety::kernels {

/// bits[i] = x[i] rounded to nearest even, in the upper half; the lower half is zero. A NaN keeps
/// its upper bits and becomes quiet. x may be what bits points to.
template <class Unit>
inline void round_to_upper_half(const float* x, std::size_t size, std::uint32_t* bits) {
  for (std::size_t i = 0; i < size; ++i) {
    const auto word = __builtin_bit_cast(std::uint32_t, x[i]);
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = word + 0x7fffu + ((word >> 16) & 1u);
    bits[i] = (is_nan ? word | 0x400000u : rounded) & 0xffff0000u;
  }
}

template <class Unit>
inline void round_bf16_rows(float* x, std::size_t size) {
  constexpr std::size_t kChunk = 64;
  std::uint32_t bits[kChunk];
  for (std::size_t begin = 0; begin < size; begin += kChunk) {
    const std::size_t count = size - begin < kChunk ? size - begin : kChunk;
    round_to_upper_half<Unit>(x + begin, count, bits);
    __builtin_memcpy(x + begin, bits, count * sizeof(float));
  }
}

template <class Unit>
inline void add_rows(float* sum, const float* x, float scale, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) sum[i] += scale * x[i];
}

template <class Unit>
inline std::uint32_t largest_magnitude(const float* x, std::size_t size) {
  std::int32_t most = 0;  // bits of floats without their sign are in the floats' order
  for (std::size_t i = 0; i < size; ++i) {
    const auto bits =
        static_cast<std::int32_t>(__builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffffu);
    most = bits > most ? bits : most;
  }
  return static_cast<std::uint32_t>(most);
}

template <class Unit>
inline FixedPointSums to_fixed_point_row(const float* x,
                                         std::size_t size,
                                         float factor,
                                         std::int16_t* q) {
  constexpr std::size_t kChunk = 4096;  // sums of so many fit into 32 bits
  FixedPointSums sums{};
  for (std::size_t begin = 0; begin < size; begin += kChunk) {
    const std::size_t end = size - begin < kChunk ? size : begin + kChunk;
    std::int32_t sum = 0, magnitude = 0;
    for (std::size_t i = begin; i < end; ++i) {
      // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
      const float shifted = x[i] * factor + 12582912.0f;
      const std::int32_t value = __builtin_bit_cast(std::int32_t, shifted) - 0x4b400000;
      q[i] = static_cast<std::int16_t>(value);
      sum += value;
      magnitude += value < 0 ? -value : value;
    }
    sums.sum += sum;
    sums.magnitude += magnitude;
  }
  return sums;
}

template <class Unit>
inline void split_digits_of(std::int16_t* q, std::int32_t blocks) {
  constexpr std::int32_t kBlock = 64;
  for (; blocks > 0; --blocks, q += kBlock) {
    std::int8_t digits[2 * kBlock];
    for (std::int32_t i = 0; i < kBlock; ++i) {
      digits[i] = static_cast<std::int8_t>((q[i] + 128) >> 8);
      digits[kBlock + i] = static_cast<std::int8_t>(q[i]);
    }
    __builtin_memcpy(q, digits, sizeof digits);
  }
}

template <class Unit>
inline float quantise_row(const std::uint16_t* row, std::size_t size, std::uint8_t* bytes) {
  std::int32_t most = 0;  // as in largest_magnitude
  for (std::size_t i = 0; i < size; ++i) {
    const std::int32_t bits = row[i] & 0x7fff;
    most = bits > most ? bits : most;
  }
  const float scale = __builtin_bit_cast(float, most << 16) / 127.0f;
  if (scale == 0) {
    for (std::size_t i = 0; i < size; ++i) bytes[i] = 128;
    return scale;
  }
  for (std::size_t i = 0; i < size; ++i) {
    const auto weight = __builtin_bit_cast(float, std::uint32_t{row[i]} << 16);
    // Rounded as in to_fixed_point_row. It is within 127 for every BF16.
    const std::int32_t q =
        __builtin_bit_cast(std::int32_t, weight / scale + 12582912.0f) - 0x4b400000;
    bytes[i] = static_cast<std::uint8_t>(q + 128);
  }
  return scale;
}

template <class Unit>
class KvStore {
 public:
  static void run(const StoreTask& task) {
    for (std::int32_t i = 0; i < task.count; ++i) {
      const std::int32_t token = task.token + i;
      const float* k = task.new_k + i * task.stride;
      const float* v = task.new_v + i * task.stride;
      if (!task.is_bf16) {
        store_f32(task, token, k, v);
        continue;
      }
      store_keys(task, token, k);
      if (token % 2 == 0 && i + 1 < task.count) {
        store_value_pair(task, token, v, v + task.stride);
      } else if (token % 2 == 0 || i == 0) {
        store_value(task, token, v);
      }
    }
  }

 private:
  static constexpr std::int32_t kChunk = 64;

  static void store_f32(const StoreTask& task, std::int32_t token, const float* k, const float* v) {
    auto* keys = reinterpret_cast<float*>(task.k) + token;
    for (std::int32_t d = 0; d < task.head_dim; ++d) keys[std::ptrdiff_t{d} * kBlockTokens] = k[d];
    __builtin_memcpy(task.v + token * (task.head_dim * sizeof(float)), v,
                     static_cast<std::size_t>(task.head_dim) * sizeof(float));
  }

  static void store_keys(const StoreTask& task, std::int32_t token, const float* k) {
    for (std::int32_t begin = 0; begin < task.head_dim; begin += kChunk) {
      const std::int32_t count = count_at(task, begin);
      std::uint32_t bits[kChunk];
      round_to_upper_half<Unit>(k + begin, static_cast<std::size_t>(count), bits);
      std::byte* pairs = task.k + std::ptrdiff_t{begin} * kBlockTokens * 2;
      for (std::int32_t d = 0; d + 1 < count; d += 2) {
        const std::uint32_t pair = bits[d] >> 16 | bits[d + 1];
        __builtin_memcpy(pairs + (std::ptrdiff_t{d} * kBlockTokens + 2 * token) * 2, &pair, 4);
      }
      if (count % 2 != 0) {
        const auto last = static_cast<std::uint16_t>(bits[count - 1] >> 16);
        __builtin_memcpy(pairs + (std::ptrdiff_t{count - 1} * kBlockTokens + token) * 2, &last, 2);
      }
    }
  }

  /// Tokens `token`, which is even, and `token` + 1.
  static void store_value_pair(const StoreTask& task,
                               std::int32_t token,
                               const float* even,
                               const float* odd) {
    for (std::int32_t begin = 0; begin < task.head_dim; begin += kChunk) {
      const std::int32_t count = count_at(task, begin);
      std::uint32_t low[kChunk];
      std::uint32_t high[kChunk];
      round_to_upper_half<Unit>(even + begin, static_cast<std::size_t>(count), low);
      round_to_upper_half<Unit>(odd + begin, static_cast<std::size_t>(count), high);
      for (std::int32_t d = 0; d < count; ++d) low[d] = low[d] >> 16 | high[d];
      __builtin_memcpy(value_words(task, token, begin), low, static_cast<std::size_t>(count) * 4);
    }
  }

  /// One token. The other one of its pair is not written: another thread may be storing it.
  static void store_value(const StoreTask& task, std::int32_t token, const float* v) {
    for (std::int32_t begin = 0; begin < task.head_dim; begin += kChunk) {
      const std::int32_t count = count_at(task, begin);
      std::uint32_t bits[kChunk];
      round_to_upper_half<Unit>(v + begin, static_cast<std::size_t>(count), bits);
      std::byte* words = value_words(task, token, begin) + token % 2 * 2;
      for (std::int32_t d = 0; d < count; ++d) {
        const auto half = static_cast<std::uint16_t>(bits[d] >> 16);
        __builtin_memcpy(words + std::ptrdiff_t{d} * 4, &half, 2);
      }
    }
  }

  static std::int32_t count_at(const StoreTask& task, std::int32_t begin) {
    return task.head_dim - begin < kChunk ? task.head_dim - begin : kChunk;
  }
  static std::byte* value_words(const StoreTask& task, std::int32_t token, std::int32_t d) {
    return task.v + (std::ptrdiff_t{token / 2} * task.head_dim + d) * 4;
  }
};

}  // namespace moiety::kernels
