#include "model/token_weights.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace moiety {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kBlock = kSoftmaxBlock;
constexpr std::int32_t kBuckets = 4096;

std::size_t block_count(std::size_t count) { return (count + kBlock - 1) / kBlock; }

/// The last block, filled up with minus infinity; unused when the row has whole blocks only.
std::array<float, kBlock> tail_of(std::span<const float> logits) {
  std::array<float, kBlock> tail;
  tail.fill(-kInfinity);
  const std::size_t begin = logits.size() / kBlock * kBlock;
  std::copy(logits.begin() + static_cast<std::ptrdiff_t>(begin), logits.end(), tail.begin());
  return tail;
}

/// Calls visit(block index, pointer to its logits) for every block.
template <class Visit>
void for_each_block(std::span<const float> logits, Visit visit) {
  const std::size_t whole = logits.size() / kBlock;
  for (std::size_t block = 0; block < whole; ++block) visit(block, logits.data() + block * kBlock);
  if (whole * kBlock == logits.size()) return;
  const std::array<float, kBlock> tail = tail_of(logits);
  visit(whole, tail.data());
}

}  // namespace

LargestLogit largest_logit(std::span<const float> logits) {
  const SoftmaxBlocks& loops = softmax_blocks();
  LargestLogit found;
  std::size_t where = 0;
  for_each_block(logits, [&](std::size_t block, const float* values) {
    const float value = loops.largest(values);
    if (!(value > found.value)) return;
    found.value = value;
    where = block * kBlock;
  });
  if (found.value == -kInfinity) return found;
  while (logits[where] != found.value) ++where;
  found.token = static_cast<std::int32_t>(where);
  return found;
}

double softmax_denominator(std::span<const float> logits, float largest) {
  const SoftmaxBlocks& loops = softmax_blocks();
  double sum = 0;
  for_each_block(logits, [&](std::size_t, const float* values) {
    sum += loops.weigh(values, largest, 1.0f, nullptr);
  });
  return sum;
}

std::vector<TokenLogprob> largest_logits(std::span<const float> logits, std::int32_t n) {
  const SoftmaxBlocks& loops = softmax_blocks();
  const std::size_t size = std::min(static_cast<std::size_t>(std::max(n, 0)), logits.size());
  std::vector<TokenLogprob> best;
  if (size == 0) return best;
  best.reserve(size + 1);
  for_each_block(logits, [&](std::size_t block, const float* values) {
    if (best.size() == size && !(loops.largest(values) > best.back().logprob)) return;
    const std::size_t count = std::min(kBlock, logits.size() - block * kBlock);
    for (std::size_t i = 0; i < count; ++i) {
      const float value = values[i] > -kInfinity ? values[i] : -kInfinity;
      if (best.size() == size && !(value > best.back().logprob)) continue;
      const auto at =
          std::upper_bound(best.begin(), best.end(), value,
                           [](float v, const TokenLogprob& other) { return v > other.logprob; });
      best.insert(at, {static_cast<std::int32_t>(block * kBlock + i), value});
      if (best.size() > size) best.pop_back();
    }
  });
  return best;
}

const float* TokenWeights::block(std::size_t index) const {
  return (index + 1) * kBlock <= logits_.size() ? logits_.data() + index * kBlock : tail_.data();
}

void TokenWeights::assign(std::span<const float> logits, float temperature) {
  const std::size_t blocks = block_count(logits.size());
  logits_ = logits;
  tail_ = tail_of(logits);
  temperature_ = temperature;
  weights_.resize(blocks * kBlock);
  block_max_.resize(blocks);
  block_kept_.resize(blocks);
  max_ = -kInfinity;
  for (std::size_t i = 0; i < blocks; ++i) {
    block_max_[i] = loops_.largest(block(i));
    max_ = std::max(max_, block_max_[i]);
  }
  MOIETY_CHECK(std::isfinite(max_) && temperature >= kGreedyTemperature,
               "a row without finite logits, or a greedy temperature");
  last_ = {};
  kept_mass_ = 0;
  for (std::size_t i = 0; i < blocks; ++i) {
    block_kept_[i] = loops_.weigh(block(i), max_, 1.0f / temperature, weights_.data() + i * kBlock);
    kept_mass_ += block_kept_[i];
  }
}

bool TokenWeights::keeps(std::size_t token) const {
  const float logit = logits_[token];
  return logit > last_.logit ||
         (logit == last_.logit && token <= static_cast<std::size_t>(last_.token));
}

void TokenWeights::set_boundary(Boundary boundary) {
  last_ = boundary;
  kept_mass_ = 0;
  const auto last_block = static_cast<std::size_t>(boundary.token) / kBlock;
  for (std::size_t i = 0; i < block_max_.size(); ++i) {
    double& kept = block_kept_[i];
    kept = 0;
    if (block_max_[i] < boundary.logit) continue;
    if (i == last_block) {
      const std::size_t end = std::min((i + 1) * kBlock, logits_.size());
      for (std::size_t token = i * kBlock; token < end; ++token) {
        if (keeps(token)) kept += static_cast<double>(weights_[token]);
      }
    } else {  // of equals the lower ids are kept
      kept = loops_.mass(block(i), weights_.data() + i * kBlock, boundary.logit, i > last_block);
    }
    kept_mass_ += kept;
  }
}

void TokenWeights::keep_min_p(float min_p) {
  const double bound = static_cast<double>(max_) +
                       static_cast<double>(temperature_) * std::log(static_cast<double>(min_p));
  // The smallest float that is not below the bound, so that comparing floats is exact.
  auto logit = static_cast<float>(bound);
  if (static_cast<double>(logit) < bound) logit = std::nextafter(logit, kInfinity);
  set_boundary({std::min(logit, max_), std::numeric_limits<std::int32_t>::max()});
}

void TokenWeights::keep_top_k(std::int32_t top_k) {
  if (static_cast<std::size_t>(top_k) >= logits_.size()) return;
  cut(top_k, std::numeric_limits<double>::infinity());
}

void TokenWeights::keep_top_p(float top_p) {
  cut(std::numeric_limits<std::int64_t>::max(), static_cast<double>(top_p) * kept_mass_);
}

void TokenWeights::cut(std::int64_t count, double mass) {
  // Tokens far below the largest are looked at only when those near it do not suffice.
  for (const float depth : {3.0f, 8.0f, 16.0f, 32.0f, kInfinity}) {
    const float floor = std::max(max_ - depth * temperature_, last_.logit);
    std::int64_t tokens = 0;
    double reached = 0;
    for (std::size_t i = 0; i < block_max_.size(); ++i) {
      if (block_max_[i] < floor) continue;
      tokens += loops_.count(block(i), floor, false);
      reached += loops_.mass(block(i), weights_.data() + i * kBlock, floor, false);
    }
    if (tokens < count && reached < mass) continue;
    if (cut_above(floor, count, mass)) return;
  }
}

bool TokenWeights::cut_above(float floor, std::int64_t count, double mass) {
  // A histogram of the logits between `floor` and the largest; one more bucket for all others.
  // Indices ascend with falling logits, and equal logits share a bucket.
  float lowest = floor;
  if (!std::isfinite(lowest)) {
    lowest = max_;
    for (std::size_t token = 0; token < logits_.size(); ++token) {
      if (std::isfinite(logits_[token])) lowest = std::min(lowest, logits_[token]);
    }
  }
  const float scale = lowest < max_ ? static_cast<float>(kBuckets - 1) / (max_ - lowest) : 0.0f;
  const auto last_block = static_cast<std::size_t>(last_.token) / kBlock;
  std::array<std::int32_t, kBlock> indices;
  const auto for_each_index = [&](auto visit) {
    for (std::size_t i = 0; i < block_max_.size(); ++i) {
      if (block_max_[i] < floor) continue;
      const bool above = floor == last_.logit && i > last_block;
      loops_.indices(block(i), max_, scale, kBuckets - 1, floor, above, indices.data());
      if (i == last_block) {
        const std::size_t end = std::min((i + 1) * kBlock, logits_.size());
        for (std::size_t token = i * kBlock; token < end; ++token) {
          if (!keeps(token)) indices[token - i * kBlock] = kBuckets;
        }
      }
      for (std::size_t j = 0; j < kBlock; ++j) visit(indices[j], i * kBlock + j);
    }
  };
  buckets_.assign(kBuckets + 1, {});
  for_each_index([&](std::int32_t index, std::size_t token) {
    Bucket& bucket = buckets_[static_cast<std::size_t>(index)];
    bucket.mass += static_cast<double>(weights_[token]);
    ++bucket.count;
  });
  std::int32_t boundary = 0;
  for (; boundary < kBuckets; ++boundary) {
    const Bucket& bucket = buckets_[static_cast<std::size_t>(boundary)];
    if (bucket.count > 0 && (bucket.count >= count || bucket.mass >= mass)) break;
    count -= bucket.count;
    mass -= bucket.mass;
  }
  if (boundary == kBuckets) return false;
  candidates_.clear();
  for_each_index([&](std::int32_t index, std::size_t token) {
    if (index == boundary && token < logits_.size()) {
      candidates_.push_back(static_cast<std::int32_t>(token));
    }
  });
  if (candidates_.empty()) return false;  // only the filling of the last block was there
  set_boundary_among_candidates(count, mass);
  return true;
}

void TokenWeights::set_boundary_among_candidates(std::int64_t count, double mass) {
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float la = logits_[static_cast<std::size_t>(a)];
    const float lb = logits_[static_cast<std::size_t>(b)];
    return la != lb ? la > lb : a < b;
  };
  // Halves the range that holds the boundary until it is small, then puts it in order.
  auto begin = candidates_.begin();
  auto end = candidates_.end();
  while (end - begin > 32) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    double half = 0;
    for (auto it = begin; it != middle; ++it) {
      half += static_cast<double>(weights_[static_cast<std::size_t>(*it)]);
    }
    if (middle - begin >= count || half >= mass) {
      end = middle;
    } else {
      count -= middle - begin;
      mass -= half;
      begin = middle;
    }
  }
  std::sort(begin, end, before);
  std::int32_t token = *begin;
  for (auto it = begin; it != end; ++it) {
    token = *it;
    --count;
    mass -= static_cast<double>(weights_[static_cast<std::size_t>(token)]);
    if (count <= 0 || mass <= 0) break;
  }
  set_boundary({logits_[static_cast<std::size_t>(token)], token});
}

std::int32_t TokenWeights::draw(double uniform) const {
  const double target = uniform * kept_mass_;
  double passed = 0;
  std::size_t chosen = 0;  // the last that holds anything, should rounding leave a rest
  for (std::size_t i = 0; i < block_kept_.size(); ++i) {
    if (block_kept_[i] <= 0) continue;
    chosen = i;
    if (passed + block_kept_[i] > target) break;
    passed += block_kept_[i];
  }
  std::int32_t last = 0;
  const std::size_t end = std::min((chosen + 1) * kBlock, logits_.size());
  for (std::size_t token = chosen * kBlock; token < end; ++token) {
    if (weights_[token] <= 0 || !keeps(token)) continue;
    last = static_cast<std::int32_t>(token);
    passed += static_cast<double>(weights_[token]);
    if (passed > target) break;
  }
  return last;
}

}  // namespace moiety
