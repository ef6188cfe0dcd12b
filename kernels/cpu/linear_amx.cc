#include <immintrin.h>

#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

// One output is one chain of TDPBF16PS over blocks of 32 k, also where sums go to memory and back
// between spans of k. A tile holds 16 rows; rows beyond the last are computed and thrown away,
// which costs nothing that a smaller tile would save.
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
  [[gnu::always_inline]] static void store(float* memory, std::ptrdiff_t stride = 64) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(memory), "r"(stride), "i"(kTile)
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
  static void store(float* memory, std::ptrdiff_t stride = 64) {
    for (std::ptrdiff_t row = 0; row < kTileRows; ++row) {
      __builtin_memcpy(reinterpret_cast<unsigned char*>(memory) + row * stride,
                       tiles()[kTile].bytes + row * 64, 64);
    }
  }
};

constexpr std::int32_t kTilePairs = kTileK / 2;
/// Rows of one walk over k in spans: their sums wait in memory between spans.
constexpr std::int32_t kMaxRows = 192;
/// From this many rows on k is walked in spans, whose weights stay in the L1 cache while rows pass.
constexpr std::int32_t kSpanRows = 65;
constexpr std::int32_t kSpanPairs = 128;
/// How far ahead weights are fetched where they are used only once, in tiles.
constexpr std::int32_t kAhead = 8;

/// Where weights lie, of one or two neighbouring panels.
struct Panels {
  const std::byte* weights;
  std::ptrdiff_t panel_bytes;
};

/// 16 columns of one pair of k as BF16; integers up to 127 are exact.
[[gnu::always_inline]] inline __m512i expand(const std::byte* q) {
  const auto* bytes = reinterpret_cast<const __m128i*>(q);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(bytes)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(bytes + 1)));
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

/// Writes sums [16, 16] of one panel from `row` on.
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

/// What weights to fetch while others are multiplied: `lines` of each tile.
struct Fetch {
  std::int32_t lines = 0;         // per tile and panel
  std::ptrdiff_t tile_bytes = 0;  // from one tile to the next, where they are fetched
  std::int32_t near_tiles = 0;    // so many tiles come from `near`, the following ones from `far`
  Panels near{}, far{};
};

/// Multiplies kRowTiles x 16 rows by kPanels panels, tile by tile of k.
template <class Tiles, int kRowTiles, int kPanels>
class Block {
 public:
  /// Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights.
  static void zero() {
    unrolled<kSums>([&](auto i)
                        __attribute__((always_inline)) { Tiles::template zero<i.value>(); });
  }
  static void load(const float* sums) {
    unrolled<kSums>([&](auto i) __attribute__((always_inline)) {
      Tiles::template load<i.value>(sums + i.value * kTileFloats, 64);
    });
  }
  static void store(float* sums) {
    unrolled<kSums>([&](auto i) __attribute__((always_inline)) {
      Tiles::template store<i.value>(sums + i.value * kTileFloats);
    });
  }

  /// Whole tiles only.
  static void store_to(float* y, std::ptrdiff_t stride) {
    unrolled<kRowTiles>([&](auto r) __attribute__((always_inline)) {
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        Tiles::template store<r.value * kPanels + p.value>(
            y + r.value * kTileRows * stride + p.value * kPanelColumns, stride * 4);
      });
    });
  }

  /// BF16 weights, whole tiles: `count` of them, 1024 bytes each.
  static void multiply(const std::uint16_t* x,
                       std::ptrdiff_t x_stride,
                       const Panels& panels,
                       std::int32_t count,
                       const Fetch& fetch) {
    const std::byte* w = panels.weights;
    for (std::int32_t t = 0; t < count; ++t) {
      load_inputs(x + t * kTileK, x_stride);
      if (fetch.lines > 0) fetch_tile(fetch, t);
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        Tiles::template load<6 + p.value>(w + p.value * panels.panel_bytes, 64);
        multiply_panel<p.value>();
      });
      w += kTileBytes;
    }
  }

  /// I8 weights, and the last tile of a panel where it is not whole: by way of `scratch`.
  static void multiply_made(const std::uint16_t* x,
                            std::ptrdiff_t x_stride,
                            WeightType type,
                            const Panels& panels,
                            std::int32_t pairs,
                            const Fetch& fetch) {
    alignas(64) std::byte scratch[kPanels][kTileBytes];
    const std::ptrdiff_t pair_bytes = type == WeightType::kI8 ? 32 : 64;
    for (std::int32_t pair = 0, t = 0; pair < pairs; pair += kTilePairs, ++t) {
      const std::int32_t count = pairs - pair < kTilePairs ? pairs - pair : kTilePairs;
      if (fetch.lines > 0) fetch_tile(fetch, t);
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        make_tile(panels.weights + p.value * panels.panel_bytes + pair * pair_bytes, type, count,
                  scratch[p.value]);
      });
      load_inputs(x + pair * 2, x_stride);
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        Tiles::template load<6 + p.value>(scratch[p.value], 64);
        multiply_panel<p.value>();
      });
    }
  }

 private:
  static constexpr int kSums = kRowTiles * kPanels;
  static constexpr int kTileFloats = kTileRows * 16;

  [[gnu::always_inline]] static void load_inputs(const std::uint16_t* x, std::ptrdiff_t stride) {
    unrolled<kRowTiles>([&](auto r) __attribute__((always_inline)) {
      Tiles::template load<4 + r.value>(x + r.value * kTileRows * stride, stride * 2);
    });
  }
  template <int kPanel>
  [[gnu::always_inline]] static void multiply_panel() {
    unrolled<kRowTiles>([&](auto r) __attribute__((always_inline)) {
      Tiles::template multiply<r.value * kPanels + kPanel, 4 + r.value, 6 + kPanel>();
    });
  }
  [[gnu::always_inline]] static void make_tile(const std::byte* weights,
                                               WeightType type,
                                               std::int32_t count,
                                               std::byte* tile) {
    if (count < kTilePairs) __builtin_memset(tile, 0, kTileBytes);
    if (type == WeightType::kBF16) {
      __builtin_memcpy(tile, weights, static_cast<std::size_t>(count) * 64);
    } else {
      for (std::int32_t i = 0; i < count; ++i)
        _mm512_store_si512(tile + i * 64, expand(weights + i * 32));
    }
  }
  [[gnu::always_inline]] static void fetch_tile(const Fetch& fetch, std::int32_t t) {
    const bool near = t < fetch.near_tiles;
    const Panels& from = near ? fetch.near : fetch.far;
    const std::byte* first = from.weights + (near ? t : t - fetch.near_tiles) * fetch.tile_bytes;
    for (int p = 0; p < kPanels; ++p) {
      const std::byte* line = first + p * from.panel_bytes;
      for (const std::byte* end = line + fetch.lines * 64; line < end; line += 64)
        _mm_prefetch(line, _MM_HINT_T1);
    }
  }
};

/// All rows of one or two panels.
template <class Tiles, int kPanels>
class PanelWalk {
 public:
  PanelWalk(const LinearTile& tile, std::int32_t panel)
      : tile_(tile),
        panel_(panel),
        pairs_((tile.k + 1) / 2),
        pair_bytes_(tile.type == WeightType::kI8 ? 32 : 64),
        own_{tile.weights + panel * tile.panel_bytes, tile.panel_bytes},
        next_{panel + kPanels < tile.panel_end ? own_.weights + kPanels * tile.panel_bytes
                                               : tile.next,
              tile.panel_bytes} {}

  void run() {
    for (std::int32_t first = 0; first < tile_.rows; first += kMaxRows) {
      const std::int32_t left = tile_.rows - first;
      run_rows(first, first + (left < kMaxRows ? left : kMaxRows));
      next_.weights = nullptr;  // fetched
    }
  }

 private:
  static constexpr int kBlockFloats = 2 * kPanels * kTileRows * 16;

  void run_rows(std::int32_t begin, std::int32_t end) {
    const std::int32_t rows = end - begin;
    if (rows < kSpanRows || pairs_ == 0) {
      for_blocks(begin, end, 0, pairs_, own_, tile_.type);
      return;
    }
    for (std::int32_t pair = 0; pair < pairs_; pair += kSpanPairs) {
      const std::int32_t span_end = pairs_ - pair < kSpanPairs ? pairs_ : pair + kSpanPairs;
      Panels panels{own_.weights + pair * pair_bytes_, own_.panel_bytes};
      WeightType type = tile_.type;
      if (type == WeightType::kI8) {  // expanded once for all rows
        for (int p = 0; p < kPanels; ++p) {
          for (std::int32_t i = 0; i < span_end - pair; ++i)
            _mm512_store_si512(expanded_ + (p * kSpanPairs + i) * 64,
                               expand(panels.weights + p * panels.panel_bytes + i * 32));
        }
        panels = {expanded_, kSpanPairs * 64};
        type = WeightType::kBF16;
      }
      for_blocks(begin, end, pair, span_end, panels, type);
    }
  }

  /// `panels` begin at pair `from`.
  void for_blocks(std::int32_t begin,
                  std::int32_t end,
                  std::int32_t from,
                  std::int32_t to,
                  const Panels& panels,
                  WeightType type) {
    const std::int32_t blocks = (end - begin + 2 * kTileRows - 1) / (2 * kTileRows);
    for (std::int32_t i = 0; i < blocks; ++i) {
      const std::int32_t row = begin + i * 2 * kTileRows;
      const Fetch fetch = what_to_fetch(i, blocks, from, to);
      if (end - row > kTileRows) {
        block<2>(row, from, to, panels, type, fetch, sums_ + i * kBlockFloats);
      } else {
        block<1>(row, from, to, panels, type, fetch, sums_ + i * kBlockFloats);
      }
    }
  }

  template <int kRowTiles>
  void block(std::int32_t row,
             std::int32_t from,
             std::int32_t to,
             const Panels& panels,
             WeightType type,
             const Fetch& fetch,
             float* sums) {
    using Multiply = Block<Tiles, kRowTiles, kPanels>;
    if (from == 0) {
      Multiply::zero();
    } else {
      Multiply::load(sums);
    }
    const std::uint16_t* x = tile_.x_bf16 + row * tile_.x_stride + from * 2;
    if (type == WeightType::kBF16) {
      const std::int32_t whole = (to - from) / kTilePairs;
      Multiply::multiply(x, tile_.x_stride, panels, whole, fetch);
      const std::int32_t left = to - from - whole * kTilePairs;
      if (left > 0)
        Multiply::multiply_made(x + whole * kTileK, tile_.x_stride, type,
                                {panels.weights + whole * kTileBytes, panels.panel_bytes}, left,
                                {});
    } else {
      Multiply::multiply_made(x, tile_.x_stride, type, panels, to - from, fetch);
    }
    if (to == pairs_ && tile_.scales == nullptr && tile_.rows - row >= kRowTiles * kTileRows &&
        tile_.n >= (panel_ + kPanels) * kPanelColumns) {
      Multiply::store_to(
          tile_.y + row * tile_.y_stride + (panel_ - tile_.panel_begin) * kPanelColumns,
          tile_.y_stride);
      return;
    }
    Multiply::store(sums);
    if (to < pairs_) return;
    for (int r = 0; r < kRowTiles; ++r) {
      for (int p = 0; p < kPanels; ++p)
        store_block(tile_, sums + (r * kPanels + p) * kTileRows * 16, panel_ + p,
                    row + r * kTileRows);
    }
  }

  /// One block of rows: what is used a few tiles later. Several: all blocks together fetch the
  /// next panels.
  Fetch what_to_fetch(std::int32_t block,
                      std::int32_t blocks,
                      std::int32_t from,
                      std::int32_t to) const {
    const std::ptrdiff_t tile_bytes = kTilePairs * pair_bytes_;
    const auto tile_lines = static_cast<std::int32_t>(tile_bytes / 64);
    if (blocks == 1) {
      const std::int32_t tiles = (to - from) / kTilePairs;
      const std::int32_t near = tiles > kAhead ? tiles - kAhead : 0;
      return {next_.weights == nullptr && near == 0 ? 0 : tile_lines,
              tile_bytes,
              near,
              {own_.weights + kAhead * tile_bytes, own_.panel_bytes},
              next_.weights == nullptr ? own_ : next_};
    }
    std::int32_t sharers = 1;
    while (sharers < tile_lines && sharers * 2 <= blocks) sharers *= 2;
    if (next_.weights == nullptr || block >= sharers) return {};
    const std::int32_t lines = tile_lines / sharers;
    return {lines,
            tile_bytes,
            0,
            {},
            {next_.weights + from * pair_bytes_ + block * lines * 64, next_.panel_bytes}};
  }

  const LinearTile& tile_;
  const std::int32_t panel_;
  const std::int32_t pairs_;
  const std::ptrdiff_t pair_bytes_;
  const Panels own_;
  Panels next_;  // what this thread reads after them; null: not known
  alignas(64) float sums_[kMaxRows / (2 * kTileRows) * kBlockFloats];
  alignas(64) std::byte expanded_[kPanels * kSpanPairs * 64];
};

template <class Tiles>
void all_panels(const LinearTile& tile) {
  Tiles::configure();
  std::int32_t panel = tile.panel_begin;
  for (; panel + 2 <= tile.panel_end; panel += 2) PanelWalk<Tiles, 2>(tile, panel).run();
  if (panel < tile.panel_end) PanelWalk<Tiles, 1>(tile, panel).run();
}

}  // namespace

void linear_tile(const LinearTile& tile) { all_panels<Hardware>(tile); }

void linear_tile_emulated(const LinearTile& tile) { all_panels<Emulated>(tile); }

}  // namespace moiety::kernels::amx
