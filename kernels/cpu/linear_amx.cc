#include <immintrin.h>

#include "kernels/cpu/avx512_store.h"
#include "kernels/cpu/unrolled.h"
#include "kernels/implementations.h"

// One output is one chain of TDPBF16PS over blocks of 32 k, or with I8 an exact integer by TDPBSUD
// of digits of inputs and bytes of weights, also where sums go to memory and back between spans of
// k. A tile holds 16 rows; rows beyond the last are computed and thrown away, which costs nothing
// that a smaller tile would save.
namespace moiety::kernels::amx {
namespace {

constexpr std::int32_t kTileRows = 16;
constexpr std::ptrdiff_t kTileRowBytes = 64;
constexpr std::ptrdiff_t kTileBytes = kTileRows * kTileRowBytes;
constexpr std::int32_t kTileFloats = 256;

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
  [[gnu::always_inline]] static void multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 :
                 : "i"(kSum), "i"(kInput), "i"(kWeights));
  }
  /// Signed inputs, unsigned weights.
  template <int kSum, int kInput, int kWeights>
  [[gnu::always_inline]] static void multiply_i8() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kInput), "i"(kWeights));
  }
  template <int kTile>
  [[gnu::always_inline]] static void store(void* memory, std::ptrdiff_t stride = kTileRowBytes) {
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
  template <class T>
  static T element(int tile, std::int32_t row, std::int32_t column) {
    T value;
    __builtin_memcpy(&value, tiles()[tile].bytes + row * 64 + column * std::int32_t{sizeof value},
                     sizeof value);
    return value;
  }
  static float half(int tile, std::int32_t row, std::int32_t column) {
    const std::uint32_t bits = std::uint32_t{element<std::uint16_t>(tile, row, column)} << 16;
    return __builtin_bit_cast(float, bits);
  }
  template <int kSum, int kInput, int kWeights>
  static void multiply_bf16() {
    add_products<float, kSum, 2>([](std::int32_t row, std::int32_t column, std::int32_t k) {
      return half(kInput, row, k) * half(kWeights, k / 2, column * 2 + k % 2);
    });
  }
  template <int kSum, int kInput, int kWeights>
  static void multiply_i8() {
    add_products<std::uint32_t, kSum, 4>([](std::int32_t row, std::int32_t column, std::int32_t k) {
      return static_cast<std::uint32_t>(std::int32_t{element<std::int8_t>(kInput, row, k)} *
                                        element<std::uint8_t>(kWeights, k / 4, column * 4 + k % 4));
    });
  }
  /// Of kPerWord products for each of 16 words, in order of k.
  template <class Sum, int kSum, int kPerWord, class Product>
  static void add_products(const Product& product) {
    Sum sums[kTileRows][16];
    __builtin_memcpy(sums, tiles()[kSum].bytes, sizeof sums);
    for (std::int32_t row = 0; row < kTileRows; ++row) {
      for (std::int32_t k = 0; k < 16 * kPerWord; ++k) {
        for (std::int32_t column = 0; column < 16; ++column)
          sums[row][column] += product(row, column, k);
      }
    }
    __builtin_memcpy(tiles()[kSum].bytes, sums, sizeof sums);
  }
  template <int kTile>
  static void store(void* memory, std::ptrdiff_t stride = kTileRowBytes) {
    for (std::ptrdiff_t row = 0; row < kTileRows; ++row) {
      __builtin_memcpy(static_cast<unsigned char*>(memory) + row * stride,
                       tiles()[kTile].bytes + row * 64, 64);
    }
  }
};

/// Weights lie in words of 32 bits, pairs of BF16 or fours of I8: 16 columns of a word are a tile's
/// row.
constexpr std::int32_t kTileWords = 16;
/// Blocks of rows of one walk over k in spans: their sums wait in memory between spans.
constexpr std::int32_t kMaxBlocks = 6;
/// From this many rows on k is walked in spans, whose weights stay in the L1 cache while rows pass.
constexpr std::int32_t kSpanRows = 65;
constexpr std::int32_t kSpanWords = 128;
/// How far ahead weights are fetched where they are used only once, in tiles.
constexpr std::int32_t kAhead = 8;

/// Two tiles of inputs are rows of BF16, the second 16 rows on.
struct Bf16 {
  static constexpr std::int32_t kBlockRows = 2 * kTileRows;
  static constexpr std::ptrdiff_t kStep =
      kTileRowBytes;  ///< bytes of a row from one tile of k to the next
  static std::ptrdiff_t second(std::ptrdiff_t x_stride) { return kTileRows * x_stride; }
  template <class Tiles, int kSum, int kInput, int kWeights>
  [[gnu::always_inline]] static void multiply() {
    Tiles::template multiply_bf16<kSum, kInput, kWeights>();
  }
};

/// Two tiles of inputs are the upper and the lower digits of the same rows.
struct I8 {
  static constexpr std::int32_t kBlockRows = kTileRows;
  static constexpr std::ptrdiff_t kStep = 2 * kTileRowBytes;
  static std::ptrdiff_t second(std::ptrdiff_t) { return kTileRowBytes; }
  template <class Tiles, int kSum, int kInput, int kWeights>
  [[gnu::always_inline]] static void multiply() {
    Tiles::template multiply_i8<kSum, kInput, kWeights>();
  }
};

/// Where weights lie, of one or two neighbouring panels.
struct Panels {
  const std::byte* weights;
  std::ptrdiff_t panel_bytes;
};

/// Writes outputs(r) of one panel for up to 16 rows from `row` on.
template <class Outputs>
void store_rows(const LinearTile& tile,
                std::int32_t panel,
                std::int32_t row,
                const Outputs& outputs) {
  const std::int32_t left = tile.n - panel * kPanelColumns;
  const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1);
  const std::int32_t rows = tile.rows - row < kTileRows ? tile.rows - row : kTileRows;
  float* y = tile.y + row * tile.y_stride + (panel - tile.panel_begin) * kPanelColumns;
  for (std::int32_t r = 0; r < rows; ++r)
    _mm512_mask_storeu_ps(y + r * tile.y_stride, mask, outputs(r));
}

/// What weights to fetch while others are multiplied: `lines` of each tile.
struct Fetch {
  std::int32_t lines = 0;       // per tile and panel
  std::int32_t near_tiles = 0;  // so many tiles come from `near`, the following ones from `far`
  Panels near{}, far{};
};

/// Multiplies one or two tiles of inputs by kPanels panels, tile by tile of k.
template <class Tiles, class Type, int kInputs, int kPanels>
class Block {
 public:
  /// Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights.
  static void zero() {
    unrolled<kSums>([&](auto i)
                        __attribute__((always_inline)) { Tiles::template zero<i.value>(); });
  }
  static void load(const float* sums) {
    unrolled<kSums>([&](auto i) __attribute__((always_inline)) {
      Tiles::template load<i.value>(sums + i.value * kTileFloats, kTileRowBytes);
    });
  }
  static void store(float* sums) {
    unrolled<kSums>([&](auto i) __attribute__((always_inline)) {
      Tiles::template store<i.value>(sums + i.value * kTileFloats);
    });
  }

  /// BF16: whole tiles only.
  static void store_to(float* y, std::ptrdiff_t stride) {
    unrolled<kInputs>([&](auto r) __attribute__((always_inline)) {
      unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
        Tiles::template store<r.value * kPanels + p.value>(
            y + r.value * kTileRows * stride + p.value * kPanelColumns, stride * 4);
      });
    });
  }

  /// `words` of weights of each column; the last tile may be a part.
  static void multiply(const std::byte* x,
                       std::ptrdiff_t x_stride,
                       const Panels& panels,
                       std::int32_t words,
                       const Fetch& fetch) {
    const std::byte* w = panels.weights;
    const std::int32_t whole = words / kTileWords;
    for (std::int32_t t = 0; t < whole; ++t) {
      if (fetch.lines > 0) fetch_tile(fetch, t);
      multiply_tile(x, x_stride, w, panels.panel_bytes);
      x += Type::kStep;
      w += kTileBytes;
    }
    const std::int32_t left = words - whole * kTileWords;
    if (left == 0) return;
    alignas(64) std::byte padded[kPanels * kTileBytes] = {};
    for (int p = 0; p < kPanels; ++p) {
      __builtin_memcpy(padded + p * kTileBytes, w + p * panels.panel_bytes,
                       static_cast<std::size_t>(left * kTileRowBytes));
    }
    multiply_tile(x, x_stride, padded, kTileBytes);
  }

 private:
  static constexpr int kSums = kInputs * kPanels;

  [[gnu::always_inline]] static void multiply_tile(const std::byte* x,
                                                   std::ptrdiff_t x_stride,
                                                   const std::byte* w,
                                                   std::ptrdiff_t panel_bytes) {
    unrolled<kInputs>([&](auto i) __attribute__((always_inline)) {
      Tiles::template load<4 + i.value>(x + i.value * Type::second(x_stride), x_stride);
    });
    unrolled<kPanels>([&](auto p) __attribute__((always_inline)) {
      Tiles::template load<6 + p.value>(w + p.value * panel_bytes, kTileRowBytes);
      unrolled<kInputs>([&](auto i) __attribute__((always_inline)) {
        Type::template multiply<Tiles, i.value * kPanels + p.value, 4 + i.value, 6 + p.value>();
      });
    });
  }
  [[gnu::always_inline]] static void fetch_tile(const Fetch& fetch, std::int32_t t) {
    const bool near = t < fetch.near_tiles;
    const Panels& from = near ? fetch.near : fetch.far;
    const std::byte* first = from.weights + (near ? t : t - fetch.near_tiles) * kTileBytes;
    for (int p = 0; p < kPanels; ++p) {
      const std::byte* line = first + p * from.panel_bytes;
      for (const std::byte* end = line + fetch.lines * 64; line < end; line += 64)
        _mm_prefetch(line, _MM_HINT_T1);
    }
  }
};

/// All rows of one or two panels.
template <class Tiles, class Type, int kPanels>
class PanelWalk {
 public:
  PanelWalk(const LinearTile& tile, std::int32_t panel)
      : tile_(tile),
        panel_(panel),
        words_(static_cast<std::int32_t>(tile.panel_bytes / kTileRowBytes)),
        own_{tile.weights + panel * tile.panel_bytes, tile.panel_bytes},
        next_{panel + kPanels < tile.panel_end ? own_.weights + kPanels * tile.panel_bytes
                                               : tile.next,
              tile.panel_bytes} {}

  void run() {
    constexpr std::int32_t kMaxRows = kMaxBlocks * Type::kBlockRows;
    for (std::int32_t first = 0; first < tile_.rows; first += kMaxRows) {
      const std::int32_t left = tile_.rows - first;
      run_rows(first, first + (left < kMaxRows ? left : kMaxRows));
      next_.weights = nullptr;  // fetched
    }
  }

 private:
  static constexpr int kBlockFloats = 2 * kPanels * kTileFloats;

  void run_rows(std::int32_t begin, std::int32_t end) {
    const std::int32_t span = end - begin < kSpanRows || words_ == 0 ? words_ : kSpanWords;
    std::int32_t word = 0;
    do {
      const std::int32_t to = words_ - word < span ? words_ : word + span;
      for_blocks(begin, end, word, to);
      word = to;
    } while (word < words_);
  }

  void for_blocks(std::int32_t begin, std::int32_t end, std::int32_t from, std::int32_t to) {
    const std::int32_t blocks = (end - begin + Type::kBlockRows - 1) / Type::kBlockRows;
    for (std::int32_t i = 0; i < blocks; ++i) {
      const std::int32_t row = begin + i * Type::kBlockRows;
      const Fetch fetch = what_to_fetch(i, blocks, from, to);
      float* sums = sums_ + i * kBlockFloats;
      if constexpr (Type::kBlockRows > kTileRows) {
        if (end - row <= kTileRows) {  // the second tile's rows are not there
          block<1>(row, from, to, fetch, sums);
          continue;
        }
      }
      block<2>(row, from, to, fetch, sums);
    }
  }

  template <int kInputs>
  void block(
      std::int32_t row, std::int32_t from, std::int32_t to, const Fetch& fetch, float* sums) {
    using Multiply = Block<Tiles, Type, kInputs, kPanels>;
    if (from == 0) {
      Multiply::zero();
    } else {
      Multiply::load(sums);
    }
    Multiply::multiply(tile_.x + row * tile_.x_stride + from / kTileWords * Type::kStep,
                       tile_.x_stride, {own_.weights + from * kTileRowBytes, own_.panel_bytes},
                       to - from, fetch);
    if (to == words_ && Type::kBlockRows > kTileRows && tile_.rows - row >= kInputs * kTileRows &&
        tile_.n >= (panel_ + kPanels) * kPanelColumns) {
      Multiply::store_to(
          tile_.y + row * tile_.y_stride + (panel_ - tile_.panel_begin) * kPanelColumns,
          tile_.y_stride);
      return;
    }
    Multiply::store(sums);
    if (to == words_) finish<kInputs>(Type{}, row, sums);
  }

  template <int kInputs>
  void finish(Bf16, std::int32_t row, const float* sums) {
    for (int i = 0; i < kInputs; ++i) {
      for (int p = 0; p < kPanels; ++p) {
        const float* tile = sums + (i * kPanels + p) * kTileFloats;
        store_rows(tile_, panel_ + p, row + i * kTileRows,
                   [&](std::int32_t r) { return _mm512_load_ps(tile + r * 16); });
      }
    }
  }
  template <int kInputs>
  void finish(I8, std::int32_t row, const float* sums) {
    for (int p = 0; p < kPanels; ++p) {
      const float* upper = sums + p * kTileFloats;
      const float* lower = upper + kPanels * kTileFloats;
      store_rows(tile_, panel_ + p, row, [&](std::int32_t r) {
        const __m512i products =
            _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(upper + r * 16), 8),
                             _mm512_load_si512(lower + r * 16));
        return scaled_integers(tile_, row + r, (panel_ + p) * kPanelColumns, products);
      });
    }
  }

  /// One block of rows: what is used a few tiles later. Several: all blocks together fetch the
  /// next panels.
  Fetch what_to_fetch(std::int32_t block,
                      std::int32_t blocks,
                      std::int32_t from,
                      std::int32_t to) const {
    if (blocks == 1) {
      const std::int32_t tiles = (to - from) / kTileWords;
      const std::int32_t near = tiles > kAhead ? tiles - kAhead : 0;
      return {next_.weights == nullptr && near == 0 ? 0 : kTileWords,
              near,
              {own_.weights + kAhead * kTileBytes, own_.panel_bytes},
              next_.weights == nullptr ? own_ : next_};
    }
    std::int32_t sharers = 1;
    while (sharers < kTileWords && sharers * 2 <= blocks) sharers *= 2;
    if (next_.weights == nullptr || block >= sharers) return {};
    const std::int32_t lines = kTileWords / sharers;
    return {
        lines, 0, {}, {next_.weights + (from + block * lines) * kTileRowBytes, next_.panel_bytes}};
  }

  const LinearTile& tile_;
  const std::int32_t panel_;
  const std::int32_t words_;  // of a column
  const Panels own_;
  Panels next_;  // what this thread reads after them; null: not known
  alignas(64) float sums_[kMaxBlocks * kBlockFloats];
};

template <class Tiles, class Type>
void all_panels(const LinearTile& tile) {
  std::int32_t panel = tile.panel_begin;
  for (; panel + 2 <= tile.panel_end; panel += 2) PanelWalk<Tiles, Type, 2>(tile, panel).run();
  if (panel < tile.panel_end) PanelWalk<Tiles, Type, 1>(tile, panel).run();
}

template <class Tiles>
void run(const LinearTile& tile) {
  Tiles::configure();
  if (tile.type == WeightType::kI8) {
    all_panels<Tiles, I8>(tile);
  } else {
    all_panels<Tiles, Bf16>(tile);
  }
}

}  // namespace

void linear_tile(const LinearTile& tile) { run<Hardware>(tile); }

void linear_tile_emulated(const LinearTile& tile) { run<Emulated>(tile); }

}  // namespace moiety::kernels::amx
