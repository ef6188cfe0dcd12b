#include "bench/random_weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "common/check.h"

namespace moiety::bench {
namespace {

constexpr std::size_t kBlock = 1024;

// The finaliser of MurmurHash3: every bit of x decides about every bit of the result.
std::uint32_t mix(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  return x ^ (x >> 16);
}

// Sums of four 16-bit uniform numbers: bell-shaped, standard deviation 37837.2 around 131070.
void random_block(std::uint32_t stream, std::uint32_t first, float scale, float* out) {
  for (std::size_t i = 0; i < kBlock; ++i) {
    const std::uint32_t a = mix((first + static_cast<std::uint32_t>(i)) ^ stream);
    const std::uint32_t b = mix(a + 0x9e3779b9u);
    const auto sum = static_cast<std::int32_t>((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16));
    out[i] = static_cast<float>(sum - 131070) * scale;
  }
}

// Round to nearest even. Weights are far from infinity; tiny ones become subnormal.
std::uint16_t float_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::abs(value);
  if (magnitude < 6.103515625e-05f) {  // the smallest normal half
    return sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 16777216.0f));
  }
  const std::uint32_t rounded = (bits & 0x7fffffffu) + 0xfffu + ((bits >> 13) & 1u);
  return sign | static_cast<std::uint16_t>((rounded - (112u << 23)) >> 13);
}

void convert(std::span<const float> values, DType dtype, std::byte* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, values.data(), values.size_bytes());
      return;
    case DType::kBF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const bf16 narrow = float_to_bf16(values[i]);
        std::memcpy(out + 2 * i, &narrow, 2);
      }
      return;
    case DType::kF16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint16_t narrow = float_to_f16(values[i]);
        std::memcpy(out + 2 * i, &narrow, 2);
      }
      return;
    default:
      MOIETY_CHECK(false, "weights are F32, BF16 or F16");
  }
}

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

}  // namespace

Distribution weights_distribution(const ExpectedTensor& tensor, std::int32_t num_layers) {
  if (tensor.shape.size() == 1) {
    if (tensor.name.ends_with("norm.weight")) return {0, 1};
    return {0.02f, 0};  // biases
  }
  if (tensor.name.ends_with("embed_tokens.weight")) return {1, 0};
  // All others have their inputs last.
  const auto width = static_cast<float>(tensor.shape.back());
  const float std = 0.64f / std::sqrt(width);
  if (ends_with_any(tensor.name,
                    {"o_proj.weight", "down_proj.weight", "w2.weight", "output_linear.weight"})) {
    return {std / std::sqrt(2.0f * static_cast<float>(num_layers)), 0};
  }
  return {std, 0};
}

void fill_random(std::uint64_t seed,
                 std::uint64_t key,
                 const Distribution& distribution,
                 DType dtype,
                 std::uint64_t begin,
                 std::span<std::byte> out) {
  const std::size_t element = dtype_bytes(dtype);
  const std::uint64_t end = begin + out.size() / element;
  std::array<float, kBlock> values;
  std::fill(values.begin(), values.end(), distribution.constant);
  std::byte* target = out.data();
  while (begin < end) {
    const std::uint64_t block = begin / kBlock;
    const std::size_t skip = begin % kBlock;
    const std::size_t count = std::min<std::uint64_t>(kBlock - skip, end - begin);
    if (distribution.std > 0) {
      const auto high = static_cast<std::uint32_t>((block * kBlock) >> 32);
      const std::uint32_t stream =
          mix(static_cast<std::uint32_t>(seed) ^
              mix(static_cast<std::uint32_t>(seed >> 32) ^
                  mix(static_cast<std::uint32_t>(key) ^
                      mix(static_cast<std::uint32_t>(key >> 32) ^ mix(high + 1)))));
      random_block(stream, static_cast<std::uint32_t>(block * kBlock), distribution.std / 37837.2f,
                   values.data());
    }
    convert({values.data() + skip, count}, dtype, target);
    target += count * element;
    begin += count;
  }
}

std::uint64_t name_key(std::string_view name) {
  std::uint64_t key = 0xcbf29ce484222325u;
  for (const char c : name) key = (key ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return key;
}

}  // namespace moiety::bench
