// The loops of SoftmaxBlocks in vectors of as many lanes as this file's compiler flags allow.
// Included once by each softmax_blocks_*.cc, inside an unnamed namespace of its own.

#if defined(__AVX2__)
constexpr std::size_t kLanes = 8;
#else
constexpr std::size_t kLanes = 4;
#endif
constexpr std::size_t kSums = 16;  // partial sums of a block: the same for all vector sizes
constexpr std::size_t kParts = kSums / kLanes;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t Ints __attribute__((vector_size(kLanes * 4)));

inline Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class Vector>
inline void store(const Vector& value, void* to) {
  __builtin_memcpy(to, &value, sizeof(value));
}

inline Floats splat(float value) { return value - Floats{}; }

inline Ints bits(const Floats& value) { return (Ints)value; }
inline Floats floats(const Ints& value) { return (Floats)value; }

inline Floats where(const Ints& mask, const Floats& yes, const Floats& no) {
  return floats((mask & bits(yes)) | (~mask & bits(no)));
}

inline double fold(const Floats (&sums)[kParts]) {
  float lanes[kSums];
  store(sums, lanes);
  double all = 0;
  for (float lane : lanes) all += static_cast<double>(lane);
  return all;
}

/// exp(x) for x <= 0; 0 below -87 and for what is no number.
/// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7 (what follows is below
/// 6e-9), exp(x) by adding n to the exponent.
inline Floats exp_negative(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  constexpr std::int32_t kRoundBits = 0x4b400000;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // sum: ln 2
  const Ints in_range = x > -87.0f;
  x = floats(bits(x) & in_range);
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * kLn2High) - n * kLn2Low;
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = bits(shifted) - (kRoundBits - 127);
  return floats(bits(p * floats(exponent << 23)) & in_range);
}

float largest(const float* logits) {
  Floats most[kParts];
  for (Floats& part : most) part = splat(-__builtin_inff());
  for (std::size_t i = 0; i < kSoftmaxBlock; i += kSums) {
    for (std::size_t part = 0; part < kParts; ++part) {
      const Floats values = load(logits + i + part * kLanes);
      most[part] = where(values > most[part], values, most[part]);
    }
  }
  float lanes[kSums];
  store(most, lanes);
  float all = lanes[0];
  for (float lane : lanes) all = lane > all ? lane : all;
  return all;
}

double weigh(const float* logits, float largest, float scale, float* weights) {
  Floats sums[kParts] = {};
  for (std::size_t i = 0; i < kSoftmaxBlock; i += kSums) {
    for (std::size_t part = 0; part < kParts; ++part) {
      const std::size_t at = i + part * kLanes;
      const Floats weight = exp_negative((load(logits + at) - largest) * scale);
      sums[part] += weight;
      if (weights != nullptr) store(weight, weights + at);
    }
  }
  return fold(sums);
}

double mass(const float* logits, const float* weights, float bound, bool above) {
  Floats sums[kParts] = {};
  for (std::size_t i = 0; i < kSoftmaxBlock; i += kSums) {
    for (std::size_t part = 0; part < kParts; ++part) {
      const std::size_t at = i + part * kLanes;
      const Floats values = load(logits + at);
      const Ints in = above ? values > bound : values >= bound;
      sums[part] += floats(bits(load(weights + at)) & in);
    }
  }
  return fold(sums);
}

std::int32_t count(const float* logits, float bound, bool above) {
  Ints sums = {};
  for (std::size_t i = 0; i < kSoftmaxBlock; i += kLanes) {
    const Floats values = load(logits + i);
    sums -= above ? values > bound : values >= bound;
  }
  std::int32_t all = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) all += sums[lane];
  return all;
}

void indices(const float* logits,
             float largest,
             float scale,
             std::int32_t last,
             float bound,
             bool above,
             std::int32_t* indices) {
  const auto most = splat(static_cast<float>(last));
  for (std::size_t i = 0; i < kSoftmaxBlock; i += kLanes) {
    const Floats values = load(logits + i);
    const Ints in = above ? values > bound : values >= bound;
    const Floats exact = (largest - values) * scale;
    const Ints index = __builtin_convertvector(where(exact < most, exact, most), Ints);
    store((index & in) | (~in & (last + 1)), indices + i);
  }
}

constexpr SoftmaxBlocks kTable = {largest, weigh, mass, count, indices};
