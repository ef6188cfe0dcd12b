#include <immintrin.h>

#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

// One output is one chain of TDPBF16PS over blocks of 32 k. A tile holds 16 rows; rows beyond the
// last are computed and thrown away, which costs nothing that a smaller tile would save.
namespace moiety::kernels::amx {
namespace {

constexpr std::int32_t kTileRows = 16;
constexpr std::int32_t kTileK = 32;
constexpr std::ptrdiff_t kTileBytes = 1024;

/// The CPU's tiles. The configuration belongs to the thread.
struct Hardware {
  static void configure() {
    // static const: g++ 12 takes only 8 of its 64 bytes as read, and would drop stores to the
    // others.
    alignas(64) static const std::uint8_t kConfiguration[64] = {
        1,  0,                                                        // palette, start row
        0,  0,  0,  0,  0,  0,  0,  0,  0,  0, 0,  0, 0,  0,          //
        64, 0,  64, 0,  64, 0,  64, 0,  64, 0, 64, 0, 64, 0, 64, 0,   // bytes per row, tiles 0 to 7
        0,  0,  0,  0,  0,  0,  0,  0,  0,  0, 0,  0, 0,  0, 0,  0,   //
        16, 16, 16, 16, 16, 16, 16, 16, 0,  0, 0,  0, 0,  0, 0,  0};  // rows
    static thread_local bool configured = false;
    if (configured) return;
    _tile_loadconfig(kConfiguration);
    configured = true;
  }
  // Assembler: the intrinsics of g++ 12 take tile numbers as written only, and the load does not
  // say that it reads memory.
  template <int kTile>
  [[gnu::always_inline]] static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  [[gnu::always_inline]] static void load(const void* memory, std::ptrdiff_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(memory), "r"(stride), "i"(kTile)
                 : "memory");
  }
  template <int kSum, int kInput, int kWeights>
  [[gnu::always_inline]] static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 :
                 : "i"(kSum), "i"(kInput), "i"(kWeights));
  }
  template <int kTile>
  [[gnu::always_inline]] static void store(float* memory) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(memory), "r"(std::ptrdiff_t{64}), "i"(kTile)
                 : "memory");
  }
};

/// The same in memory.
struct Emulated {
  struct Tile {
    alignas(64) unsigned char bytes[1024];
  };
  static Tile* tiles() {
    static thread_local Tile all[8];
    return all;
  }
  static void configure() {}
  template <int kTile>
  static void zero() {
    __builtin_memset(tiles()[kTile].bytes, 0, 1024);
  }
  template <int kTile>
  static void load(const void* memory, std::ptrdiff_t stride) {
    for (std::ptrdiff_t row = 0; row < kTileRows; ++row) {
      __builtin_memcpy(tiles()[kTile].bytes + row * 64,
                       static_cast<const unsigned char*>(memory) + row * stride, 64);
    }
  }
  static float element(const Tile& tile, std::int32_t row, std::int32_t column) {
    std::uint16_t half;
    __builtin_memcpy(&half, tile.bytes + row * 64 + column * 2, 2);
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
  template <int kSum, int kInput, int kWeights>
  static void multiply() {
    float sums[kTileRows][16];
    __builtin_memcpy(sums, tiles()[kSum].bytes, sizeof sums);
    for (std::int32_t row = 0; row < kTileRows; ++row) {
      for (std::int32_t k = 0; k < kTileK; ++k) {
        for (std::int32_t column = 0; column < 16; ++column) {
          sums[row][column] += element(tiles()[kInput], row, k) *
                               element(tiles()[kWeights], k / 2, column * 2 + k % 2);
        }
      }
    }
    __builtin_memcpy(tiles()[kSum].bytes, sums, sizeof sums);
  }
  template <int kTile>
  static void store(float* memory) {
    __builtin_memcpy(memory, tiles()[kTile].bytes, 1024);
  }
};

/// 16 pairs of k of one panel, as a tile; the pairs that are not there are zero.
struct WeightBlocks {
  const LinearTile& tile;
  std::int32_t pairs;         // of the whole panel
  std::ptrdiff_t pair_bytes;  // 64 (BF16) or 32 (I8)

  /// Where the block lies; `scratch` (1024 bytes) holds it when it has to be made.
  [[gnu::always_inline]] const void* block(std::int32_t panel,
                                           std::int32_t first_pair,
                                           std::byte* scratch) const {
    const std::byte* weights = tile.weights + panel * tile.panel_bytes + first_pair * pair_bytes;
    const std::int32_t left = pairs - first_pair;
    const std::int32_t count = left < 16 ? left : 16;
    if (tile.type == WeightType::kBF16) {
      if (count == 16) return weights;
      __builtin_memset(scratch, 0, kTileBytes);
      __builtin_memcpy(scratch, weights, static_cast<std::size_t>(count) * 64);
      return scratch;
    }
    if (count < 16) __builtin_memset(scratch, 0, kTileBytes);
    for (std::int32_t i = 0; i < count; ++i) {
      const auto* q = reinterpret_cast<const __m128i*>(weights + i * 32);
      const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(q)));
      const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(q + 1)));
      _mm512_store_si512(scratch + i * 64,
                         reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
    return scratch;
  }
};

void store_block(const LinearTile& tile, const float* sums, std::int32_t panel, std::int32_t row) {
  const std::int32_t column = panel * kPanelColumns;
  const std::int32_t left = tile.n - column;
  const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1);
  const std::int32_t rows = tile.rows - row < kTileRows ? tile.rows - row : kTileRows;
  float* y = tile.y + row * tile.y_stride + (panel - tile.panel_begin) * kPanelColumns;
  for (std::int32_t r = 0; r < rows; ++r) {
    __m512 sum = _mm512_load_ps(sums + r * 16);
    if (tile.scales != nullptr) sum = _mm512_mul_ps(sum, _mm512_loadu_ps(tile.scales + column));
    _mm512_mask_storeu_ps(y + r * tile.y_stride, mask, sum);
  }
}

/// kRowTiles x 16 rows of kPanels panels. Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights.
template <class Tiles, int kRowTiles, int kPanels>
void compute(const LinearTile& tile, std::int32_t panel, std::int32_t row) {
  alignas(64) std::byte scratch[kPanels][kTileBytes];
  const std::int32_t pairs = (tile.k + 1) / 2;
  const WeightBlocks weights{tile, pairs, tile.type == WeightType::kBF16 ? 64 : 32};
  const std::uint16_t* x = tile.x_bf16 + row * tile.x_stride;
  const std::ptrdiff_t x_bytes = tile.x_stride * 2;
  unrolled<kRowTiles * kPanels>([&](auto t) __attribute__((always_inline)) {
    Tiles::template zero<t.value>();
  });
  for (std::int32_t pair = 0; pair < pairs; pair += 16) {
    unrolled<kRowTiles>([&](auto r) __attribute__((always_inline)) {
      Tiles::template load<4 + r.value>(x + r.value * kTileRows * tile.x_stride + pair * 2,
                                        x_bytes);
    });
    unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
      Tiles::template load<6 + p.value>(weights.block(panel + p.value, pair, scratch[p.value]), 64);
      unrolled<kRowTiles>([&](auto r) __attribute__((always_inline)) {
        Tiles::template multiply<r.value * kPanels + p.value, 4 + r.value, 6 + p.value>();
      });
    });
  }
  alignas(64) float sums[kTileRows * 16];
  unrolled<kRowTiles>([&](auto r) __attribute__((always_inline)) {
    unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
      Tiles::template store<r.value * kPanels + p.value>(sums);
      store_block(tile, sums, panel + p.value, row + r.value * kTileRows);
    });
  });
}

template <class Tiles, int kPanels>
void all_rows(const LinearTile& tile, std::int32_t panel) {
  std::int32_t row = 0;
  for (; tile.rows - row > kTileRows; row += 2 * kTileRows)
    compute<Tiles, 2, kPanels>(tile, panel, row);
  if (row < tile.rows) compute<Tiles, 1, kPanels>(tile, panel, row);
}

template <class Tiles>
void all_panels(const LinearTile& tile) {
  Tiles::configure();
  std::int32_t panel = tile.panel_begin;
  for (; panel + 2 <= tile.panel_end; panel += 2) all_rows<Tiles, 2>(tile, panel);
  if (panel < tile.panel_end) all_rows<Tiles, 1>(tile, panel);
}

}  // namespace

void linear_tile(const LinearTile& tile) { all_panels<Hardware>(tile); }

void linear_tile_emulated(const LinearTile& tile) { all_panels<Emulated>(tile); }

}  // namespace moiety::kernels::amx
