#include "model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "model/token_weights.h"

namespace moiety {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The token at `index` of an answer.
std::int32_t sample(const std::vector<float>& logits,
                    const SamplingParams& params,
                    std::uint64_t index) {
  const std::vector<std::int32_t> generated(index);
  return moiety::sample(logits, params, {}, generated).token;
}

const std::vector<float> kLogits = {0.0f, 2.0f, 1.0f, 2.0f, -3.0f};

// --- An independent plain implementation: double, a full sort, nothing skipped.

struct Kept {
  std::int32_t token;
  double probability;  // of the draw
};

/// What can be drawn, most probable first.
std::vector<Kept> plain_distribution(const std::vector<float>& raw,
                                     const SamplingParams& params,
                                     const std::vector<std::int32_t>& prompt,
                                     const std::vector<std::int32_t>& generated) {
  std::vector<double> logits(raw.begin(), raw.end());
  if (generated.size() < static_cast<std::size_t>(params.min_tokens)) {
    for (std::int32_t token : params.min_tokens_ids)
      logits[static_cast<std::size_t>(token)] = -INFINITY;
  }
  for (const auto& [token, bias] : params.logit_bias) {
    logits[static_cast<std::size_t>(token)] += static_cast<double>(bias);
  }
  std::map<std::int32_t, int> in_output;
  for (std::int32_t token : generated) ++in_output[token];
  std::map<std::int32_t, int> anywhere = in_output;
  for (std::int32_t token : prompt) ++anywhere[token];
  for (const auto& [token, count] : anywhere) {
    double& logit = logits[static_cast<std::size_t>(token)];
    const auto penalty = static_cast<double>(params.repetition_penalty);
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  for (const auto& [token, count] : in_output) {
    logits[static_cast<std::size_t>(token)] -=
        static_cast<double>(params.frequency_penalty) * count +
        static_cast<double>(params.presence_penalty);
  }
  std::vector<Kept> kept;
  const double max = *std::max_element(logits.begin(), logits.end());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((logits[i] - max) / static_cast<double>(params.temperature));
    kept.push_back({static_cast<std::int32_t>(i), weight});
  }
  std::stable_sort(kept.begin(), kept.end(), [&](const Kept& a, const Kept& b) {
    return logits[static_cast<std::size_t>(a.token)] > logits[static_cast<std::size_t>(b.token)];
  });
  const auto drop_from = [&](std::size_t size) {
    kept.resize(std::clamp<std::size_t>(size, 1, kept.size()));
  };
  const auto mass = [&] {
    return std::accumulate(kept.begin(), kept.end(), 0.0,
                           [](double sum, const Kept& k) { return sum + k.probability; });
  };
  std::size_t size = kept.size();
  while (size > 1 && kept[size - 1].probability < static_cast<double>(params.min_p)) --size;
  drop_from(size);
  if (params.top_k > 0) drop_from(static_cast<std::size_t>(params.top_k));
  if (params.top_p < 1) {
    const double all = mass();
    double reached = 0;
    std::size_t count = 0;
    while (count < kept.size() &&
           (count == 0 || reached < static_cast<double>(params.top_p) * all)) {
      reached += kept[count++].probability;
    }
    drop_from(count);
  }
  const double all = mass();
  for (Kept& k : kept) k.probability /= all;
  return kept;
}

/// Whether `token` is what the plain implementation draws at `uniform`, up to rounding.
bool drawn_at(std::vector<Kept> kept, double uniform, std::int32_t token) {
  std::sort(kept.begin(), kept.end(),
            [](const Kept& a, const Kept& b) { return a.token < b.token; });
  double begin = 0;
  for (const Kept& k : kept) {
    if (k.token == token) {
      return uniform >= begin - 2e-6 && uniform <= begin + k.probability + 2e-6;
    }
    begin += k.probability;
  }
  return false;
}

/// The generator of sampler.cc again: SplitMix64 over the seed, then over the index.
double plain_uniform(std::uint64_t seed, std::uint64_t index) {
  const auto mix = [](std::uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  return std::ldexp(static_cast<double>(mix(mix(seed) ^ index) >> 11), -53);
}

std::vector<float> random_logits(std::mt19937& random, std::size_t size, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

TEST(Sampler, AgreesWithThePlainImplementationOnRandomInputs) {
  std::mt19937 random(20260801);
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  const auto between = [&](float a, float b) {
    return std::uniform_real_distribution<float>(a, b)(random);
  };
  int truncated = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::size_t size = std::size_t{1} << (1 + round % 11);
    const std::size_t vocab = size + static_cast<std::size_t>(round % 5);
    std::vector<float> logits = random_logits(random, vocab, between(0.01f, 6.0f));
    if (chance(0.3)) {  // many equals
      for (float& logit : logits) logit = std::round(logit);
    }
    const auto token = [&] {
      return static_cast<std::int32_t>(
          std::uniform_int_distribution<std::size_t>(0, vocab - 1)(random));
    };
    std::vector<std::int32_t> prompt(static_cast<std::size_t>(round % 7));
    std::vector<std::int32_t> generated(static_cast<std::size_t>(round % 9));
    std::generate(prompt.begin(), prompt.end(), token);
    std::generate(generated.begin(), generated.end(), token);
    SamplingParams params;
    params.seed = random();
    params.temperature = between(0.05f, 2.0f);
    if (chance(0.5)) params.top_p = between(0.0f, 1.0f);
    if (chance(0.5)) params.top_k = 1 + token();
    if (chance(0.3)) params.min_p = between(0.0f, 0.5f);
    if (chance(0.3)) params.repetition_penalty = between(0.5f, 2.0f);
    if (chance(0.3)) params.presence_penalty = between(-2.0f, 2.0f);
    if (chance(0.3)) params.frequency_penalty = between(-2.0f, 2.0f);
    if (chance(0.3)) params.logit_bias = {{0, between(-5.0f, 5.0f)}, {1, between(-5.0f, 5.0f)}};
    if (chance(0.3)) {
      params.min_tokens = static_cast<std::int32_t>(round % 6);
      params.min_tokens_ids = {token() / 2};
    }
    const auto kept = plain_distribution(logits, params, prompt, generated);
    truncated += kept.size() < vocab ? 1 : 0;
    const SampledToken sampled = moiety::sample(logits, params, prompt, generated);
    const double uniform = plain_uniform(params.seed, generated.size());
    // Where float rounding moves the boundary by one token, the plain set with a hair more or less
    // must contain it.
    SamplingParams wider = params, narrower = params;
    wider.top_p = std::min(1.0f, params.top_p * (1 + 1e-6f));
    narrower.top_p = params.top_p < 1 ? params.top_p * (1 - 1e-6f) : 1.0f;
    wider.min_p = params.min_p * (1 - 1e-6f);
    narrower.min_p = params.min_p * (1 + 1e-6f);
    EXPECT_TRUE(
        drawn_at(kept, uniform, sampled.token) ||
        drawn_at(plain_distribution(logits, wider, prompt, generated), uniform, sampled.token) ||
        drawn_at(plain_distribution(logits, narrower, prompt, generated), uniform, sampled.token))
        << "round " << round << ", vocabulary " << vocab << ", token " << sampled.token;
  }
  EXPECT_GT(truncated, 1500);
}

// --- The weights alone, at sizes and shapes where skipping and buckets matter.

/// The kept tokens, found by drawing at the middle of every token's share.
std::vector<std::int32_t> kept_tokens(const TokenWeights& weights,
                                      const std::vector<Kept>& expected) {
  std::vector<Kept> by_id = expected;
  std::sort(by_id.begin(), by_id.end(),
            [](const Kept& a, const Kept& b) { return a.token < b.token; });
  std::vector<std::int32_t> tokens;
  double begin = 0;
  for (const Kept& k : by_id) {
    if (k.probability > 1e-6) tokens.push_back(weights.draw(begin + k.probability / 2));
    begin += k.probability;
  }
  return tokens;
}

TEST(TokenWeights, KeepsTheRightTokensOfLargeRows) {
  std::mt19937 random(7);
  for (const float spread : {0.0f, 0.3f, 1.0f, 4.0f, 12.0f}) {
    for (const float top_p : {0.1f, 0.9f, 0.999f}) {
      for (const std::int32_t top_k : {0, 1, 40, 5000, 19990}) {
        const std::vector<float> logits = random_logits(random, 20011, spread);
        SamplingParams params;
        params.top_p = top_p;
        params.top_k = top_k;
        const auto expected = plain_distribution(logits, params, {}, {});
        TokenWeights weights;
        weights.assign(logits, 1.0f);
        if (top_k > 0) weights.keep_top_k(top_k);
        weights.keep_top_p(top_p);
        std::vector<std::int32_t> ids;
        for (const Kept& k : expected) {
          if (k.probability > 1e-6) ids.push_back(k.token);
        }
        std::sort(ids.begin(), ids.end());
        EXPECT_EQ(kept_tokens(weights, expected), ids) << spread << " " << top_p << " " << top_k;
        // The ends of the draw are kept tokens, too.
        const auto is_kept = [&](std::int32_t token) {
          return std::any_of(expected.begin(), expected.end(),
                             [&](const Kept& k) { return k.token == token; });
        };
        EXPECT_TRUE(is_kept(weights.draw(0.0)));
        EXPECT_TRUE(is_kept(weights.draw(std::nextafter(1.0, 0.0))));
      }
    }
  }
}

TEST(TokenWeights, TopKKeepsExactlyKAndLowerIdsOfEquals) {
  std::vector<float> logits(300, 1.0f);
  logits[250] = 2.0f;
  TokenWeights weights;
  weights.assign(logits, 1.0f);
  weights.keep_top_k(4);
  // Weights: e for 250, 1 for tokens 0, 1 and 2.
  const double all = 3 + std::exp(1.0);
  EXPECT_EQ(weights.draw(0.5 / all), 0);
  EXPECT_EQ(weights.draw(1.5 / all), 1);
  EXPECT_EQ(weights.draw(2.5 / all), 2);
  EXPECT_EQ(weights.draw(3.01 / all), 250);
  EXPECT_EQ(weights.draw(std::nextafter(1.0, 0.0)), 250);
}

TEST(SoftmaxBlocks, AllVariantsGiveTheSameBits) {
  const SoftmaxBlocks& plain = *softmax_blocks_plain();
  const SoftmaxBlocks* other = softmax_blocks_avx2();
  if (other == nullptr) GTEST_SKIP() << "this machine has no AVX2";
  const auto same = [](auto a, auto b) { return std::memcmp(&a, &b, sizeof(a)) == 0; };
  std::mt19937 random(9);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> logits =
        random_logits(random, kSoftmaxBlock, 0.1f * static_cast<float>(round));
    if (round % 3 == 0) logits[static_cast<std::size_t>(round) % kSoftmaxBlock] = -kInfinity;
    if (round % 5 == 0) logits[static_cast<std::size_t>(round * 7) % kSoftmaxBlock] = kNan;
    const float largest = plain.largest(logits.data());
    EXPECT_TRUE(same(largest, other->largest(logits.data())));
    std::array<float, kSoftmaxBlock> weights[2];
    EXPECT_TRUE(same(plain.weigh(logits.data(), largest, 1.7f, weights[0].data()),
                     other->weigh(logits.data(), largest, 1.7f, weights[1].data())));
    EXPECT_TRUE(same(weights[0], weights[1]));
    const float bound = logits[5];
    for (const bool above : {false, true}) {
      EXPECT_EQ(plain.count(logits.data(), bound, above),
                other->count(logits.data(), bound, above));
      EXPECT_TRUE(same(plain.mass(logits.data(), weights[0].data(), bound, above),
                       other->mass(logits.data(), weights[0].data(), bound, above)));
      std::array<std::int32_t, kSoftmaxBlock> indices[2];
      plain.indices(logits.data(), largest, 3.0f, 50, bound, above, indices[0].data());
      other->indices(logits.data(), largest, 3.0f, 50, bound, above, indices[1].data());
      EXPECT_EQ(indices[0], indices[1]);
    }
  }
}

TEST(TokenWeights, LargestAndDenominator) {
  std::mt19937 random(3);
  for (const std::size_t size : {1u, 3u, 4u, 63u, 64u, 65u, 5000u}) {
    std::vector<float> logits = random_logits(random, size, 3.0f);
    const auto expected = std::max_element(logits.begin(), logits.end());
    EXPECT_EQ(largest_logit(logits).token, expected - logits.begin());
    EXPECT_EQ(largest_logit(logits).value, *expected);
    double sum = 0;
    for (float logit : logits)
      sum += std::exp(static_cast<double>(logit) - static_cast<double>(*expected));
    EXPECT_NEAR(softmax_denominator(logits, *expected), sum, 3e-7 * sum);
    // exp alone: a row of two values.
    for (float x = 0; x > -86; x -= 0.37f) {
      const std::vector<float> pair = {0.0f, x};
      EXPECT_NEAR(softmax_denominator(pair, 0.0f) - 1, std::exp(static_cast<double>(x)),
                  3e-7 * std::exp(static_cast<double>(x)) + 1e-15);
    }
  }
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(sample(kLogits, {.temperature = 0.0f, .top_p = 1.0f, .seed = 5}, 0), 1);
  std::vector<float> many(1000, -1.0f);
  many[999] = many[70] = many[69] = 3.0f;
  EXPECT_EQ(sample(many, {.temperature = 0.0f}, 0), 69);
  // Truncation and seeds are of no account.
  EXPECT_EQ(
      sample(many, {.temperature = 0.0f, .top_p = 0.1f, .seed = 3, .top_k = 7, .min_p = 0.5f}, 0),
      69);
}

TEST(Sampler, TheSameSeedAndIndexGiveTheSameToken) {
  for (std::uint64_t index = 0; index < 100; ++index) {
    EXPECT_EQ(sample(kLogits, {.temperature = 1.0f, .top_p = 1.0f, .seed = 42}, index),
              sample(kLogits, {.temperature = 1.0f, .top_p = 1.0f, .seed = 42}, index));
  }
}

TEST(Sampler, ThreadsAndScratchLeaveNoTrace) {
  std::mt19937 random(11);
  std::vector<std::vector<float>> rows;
  std::vector<SamplingParams> params;
  for (std::size_t i = 0; i < 40; ++i) {  // of changing sizes: scratch grows and shrinks
    rows.push_back(random_logits(random, 50 + 97 * (i % 7), 2.0f));
    SamplingParams p;
    p.seed = i;
    if (i % 2 == 0) p.top_p = 0.8f;
    if (i % 3 == 0) p.frequency_penalty = 0.7f;
    if (i % 5 == 0) p.repetition_penalty = 1.3f;
    params.push_back(p);
  }
  const std::vector<std::int32_t> prompt = {3, 4, 5, 5}, generated = {7, 7, 8};
  const auto all = [&] {
    std::vector<std::int32_t> tokens;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      tokens.push_back(moiety::sample(rows[i], params[i], prompt, generated).token);
    }
    return tokens;
  };
  const std::vector<std::int32_t> expected = all();
  EXPECT_EQ(all(), expected);
  std::vector<std::vector<std::int32_t>> others(4);
  std::vector<std::thread> threads;
  for (auto& other : others) threads.emplace_back([&] { other = all(); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& other : others) EXPECT_EQ(other, expected);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const int draws = 40000;
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    std::vector<int> counts(kLogits.size());
    for (int i = 0; i < draws; ++i) {
      ++counts[static_cast<std::size_t>(
          sample(kLogits, {.temperature = temperature, .top_p = 1.0f, .seed = 7},
                 static_cast<std::uint64_t>(i)))];
    }
    double sum = 0;
    for (float l : kLogits) sum += std::exp(l / temperature);
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const double p = std::exp(kLogits[i] / temperature) / sum;
      EXPECT_NEAR(counts[i], draws * p, 5 * std::sqrt(draws * p * (1 - p))) << "token " << i;
    }
  }
}

TEST(Sampler, DifferentSeedsDrawDifferentSequences) {
  int same = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    same += sample(kLogits, {.temperature = 1.0f, .top_p = 1.0f, .seed = 1}, i) ==
                    sample(kLogits, {.temperature = 1.0f, .top_p = 1.0f, .seed = 2}, i)
                ? 1
                : 0;
  }
  EXPECT_LT(same, 500);
}

TEST(Sampler, TheNucleusIsTheSmallestSetThatReachesTopP) {
  // Probabilities: 0.4 (1), 0.4 (3), 0.15 (2), 0.05 (0), 0.003 (4), roughly.
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const auto token = sample(kLogits, {.temperature = 1.0f, .top_p = 0.5f, .seed = 3}, i);
    EXPECT_TRUE(token == 1 || token == 3);
    EXPECT_EQ(sample(kLogits, {.temperature = 1.0f, .top_p = 0.0f, .seed = 3}, i), 1)
        << "never less than one token";
  }
}

/// Every token that comes up in many draws.
std::vector<std::int32_t> drawn(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<std::int32_t> tokens;
  for (std::uint64_t i = 0; i < 3000; ++i) tokens.push_back(sample(logits, params, i));
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}

TEST(Sampler, HandComputedTruncation) {
  using Ids = std::vector<std::int32_t>;
  // Probabilities 0.5, 0.25, 0.125, 0.125 of tokens 2, 0, 1, 3.
  const auto log2 = [](float p) { return std::log(p); };
  const std::vector<float> logits = {log2(0.25f), log2(0.125f), log2(0.5f), log2(0.125f)};
  EXPECT_EQ(drawn(logits, {}), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(drawn(logits, {.top_k = 2}), (Ids{0, 2}));
  EXPECT_EQ(drawn(logits, {.top_k = 3}), (Ids{0, 1, 2})) << "of equals the lower id";
  EXPECT_EQ(drawn(logits, {.top_k = 400}), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(drawn(logits, {.min_p = 0.4f}), (Ids{0, 2}));
  EXPECT_EQ(drawn(logits, {.min_p = 1.0f}), (Ids{2}));
  EXPECT_EQ(drawn(logits, {.top_p = 0.6f}), (Ids{0, 2}));
  EXPECT_EQ(drawn(logits, {.top_p = 0.8f}), (Ids{0, 1, 2}));
  // 0.6 of what top_k = 2 leaves (2/3 and 1/3) is reached by token 2 alone; of everything it is
  // not.
  EXPECT_EQ(drawn(logits, {.top_p = 0.6f, .top_k = 2}), (Ids{2}));
  // min_p comes first, too: it leaves 2/3 and 1/3.
  EXPECT_EQ(drawn(logits, {.top_p = 0.6f, .min_p = 0.4f}), (Ids{2}));
  // The temperature comes before them: at 0.5 the probabilities are as the squares, 16:4:1:1.
  EXPECT_EQ(drawn(logits, {.temperature = 0.5f, .min_p = 0.4f}), (Ids{2}));
}

TEST(Sampler, HandComputedPenalties) {
  const std::vector<float> logits = {2.0f, 1.5f, -1.0f, -1.5f};
  const auto greedy = [&](SamplingParams params, std::vector<std::int32_t> prompt,
                          std::vector<std::int32_t> generated) {
    params.temperature = 0;
    return moiety::sample(logits, params, prompt, generated).token;
  };
  EXPECT_EQ(greedy({}, {0}, {0, 0}), 0);
  // 2 / 1.4 < 1.5, from the prompt or from the output, and once however often it stands there.
  EXPECT_EQ(greedy({.repetition_penalty = 1.4f}, {0}, {}), 1);
  EXPECT_EQ(greedy({.repetition_penalty = 1.4f}, {}, {0}), 1);
  EXPECT_EQ(greedy({.repetition_penalty = 1.2f}, {0, 0}, {0, 0}), 0);
  // Presence and frequency count the output only: 2 - 0.6, 2 - 2 * 0.3.
  EXPECT_EQ(greedy({.presence_penalty = 0.6f}, {0, 0}, {}), 0);
  EXPECT_EQ(greedy({.presence_penalty = 0.6f}, {}, {0}), 1);
  EXPECT_EQ(greedy({.presence_penalty = 0.3f}, {}, {0, 0}), 0);
  EXPECT_EQ(greedy({.frequency_penalty = 0.3f}, {}, {0, 0}), 1);
  EXPECT_EQ(greedy({.frequency_penalty = 0.3f}, {0, 0}, {0}), 0);
  EXPECT_EQ(greedy({.logit_bias = {{2, 3.5f}}}, {}, {}), 2);
  // The repetition penalty multiplies what is negative, and comes after the bias: -1 + 0.5 ->
  // -0.75.
  const std::vector<float> negative = {-0.7f, -1.0f};
  SamplingParams both{.temperature = 0, .repetition_penalty = 1.5f, .logit_bias = {{1, 0.5f}}};
  EXPECT_EQ(moiety::sample(negative, both, std::vector<std::int32_t>{1}, {}).token, 0);
  both.repetition_penalty = 1.3f;  // -0.65
  EXPECT_EQ(moiety::sample(negative, both, std::vector<std::int32_t>{1}, {}).token, 1);
}

TEST(Sampler, MinTokensKeepsTheEndAway) {
  const SamplingParams params{
      .temperature = 0, .logit_bias = {{1, 50.0f}}, .min_tokens_ids = {1, 3}, .min_tokens = 2};
  EXPECT_EQ(sample(kLogits, params, 0), 2);
  EXPECT_EQ(sample(kLogits, params, 1), 2) << "no bias brings it back";
  EXPECT_EQ(sample(kLogits, params, 2), 1);
}

TEST(Sampler, LogprobsAreThoseOfTheRawLogits) {
  std::mt19937 random(5);
  const std::vector<float> logits = random_logits(random, 1000, 3.0f);
  SamplingParams params{
      .temperature = 0.3f, .top_p = 0.9f, .repetition_penalty = 1.5f, .logit_bias = {{7, 30.0f}}};
  params.logprobs = 5;
  const SampledToken sampled = moiety::sample(logits, params, std::vector<std::int32_t>{3}, {});
  EXPECT_EQ(sampled.token, 7);
  EXPECT_NEAR(sampled.logprob, log_probability(logits, 7), 1e-6);
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  ASSERT_EQ(sampled.top.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(sampled.top[i].token, order[i]);
    EXPECT_NEAR(sampled.top[i].logprob, log_probability(logits, order[i]), 1e-6);
  }
  params.logprobs = 0;
  EXPECT_TRUE(moiety::sample(logits, params, {}, {}).top.empty());
  EXPECT_LT(moiety::sample(logits, params, {}, {}).logprob, 0);
  params.logprobs = 20000;
  EXPECT_EQ(moiety::sample(logits, params, {}, {}).top.size(), logits.size());
  // Equals: the lower id first.
  const SampledToken equal = moiety::sample(kLogits, {.temperature = 0, .logprobs = 3}, {}, {});
  ASSERT_EQ(equal.top.size(), 3u);
  EXPECT_EQ(equal.top[0].token, 1);
  EXPECT_EQ(equal.top[1].token, 3);
  EXPECT_EQ(equal.top[2].token, 2);
}

TEST(Sampler, LogitsThatAreNoNumbersAreNeverChosen) {
  std::vector<float> logits(200, kNan);
  logits[150] = -3.0f;
  logits[151] = -kInfinity;
  for (const float temperature : {0.0f, 1.0f}) {
    for (const SamplingParams& params :
         {SamplingParams{.temperature = temperature},
          SamplingParams{.temperature = temperature, .top_p = 0.5f},
          SamplingParams{.temperature = temperature, .top_k = 50},
          SamplingParams{.temperature = temperature, .min_p = 0.1f, .logprobs = 3},
          SamplingParams{.temperature = temperature,
          .top_p = 0.999999f,
          .top_k = 199,
          .presence_penalty = 1.0f}}) {
      for (std::uint64_t i = 0; i < 20; ++i) EXPECT_EQ(sample(logits, params, i), 150);
    }
  }
  // Fewer tokens than top_k asks for, and a last block that is filled up.
  std::vector<float> alone(65, kNan);
  alone[64] = 1.0f;
  EXPECT_EQ(sample(alone, {.top_k = 50}, 1), 64);
  logits[160] = kInfinity;
  EXPECT_EQ(sample(logits, {.top_p = 0.5f}, 1), 160);
  EXPECT_EQ(sample(std::vector<float>(70, kNan), {.top_p = 0.5f, .top_k = 3}, 1), 0);
  EXPECT_EQ(sample(std::vector<float>(70, -kInfinity), {}, 1), 0);
  // The largest differences that floats hold.
  constexpr float kMost = std::numeric_limits<float>::max();
  EXPECT_EQ(sample({-kMost, kMost, 0.0f}, {.top_p = 0.9f, .min_p = 0.01f}, 0), 1);
}

TEST(Sampler, LogProbabilitiesSumToOne) {
  double sum = 0;
  for (std::int32_t i = 0; i < 5; ++i) sum += std::exp(log_probability(kLogits, i));
  EXPECT_NEAR(sum, 1, 1e-12);
}

}  // namespace
}  // namespace moiety
