#include "planner/worker_types.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "common/check.h"
#include "planner/grow_types.h"

namespace moiety::planner {

namespace {

std::int32_t ceil_div(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

/// Finds how many workers of each type are needed for `num` (2 to kMaxExact) deployments.
///
/// By Hall's theorem a layer fits iff for every up-set F of member sets (with M also every superset
/// of M) the workers whose type is in F have room for the experts whose members are in F: an expert
/// of F fits only workers of F. Only the largest layer counts, so the layers collapse into one
/// number per up-set: workers(F) >= need(F) = max over layers of ceil(experts(F) / capacity).
class TypeSearch {
 public:
  using Counts = std::array<std::int32_t, 1 << kMaxExact>;  ///< workers by type

  TypeSearch(const std::vector<MemberCounts>& layers, std::int32_t capacity, int num)
      : num_(num), all_((1u << num) - 1) {
    for (std::uint32_t family = 2; family < (2u << all_); family += 2) {
      if (!is_up_set(family)) continue;
      std::int32_t need = 0;
      for (const MemberCounts& layer : layers) {
        std::int32_t experts = 0;
        for (const auto& [members, count] : layer) {
          if ((family >> members & 1u) != 0) experts += count;
        }
        need = std::max(need, ceil_div(experts, capacity));
      }
      up_sets_.push_back({family, need});
      num_workers_ = std::max(num_workers_, need);
    }
  }

  /// The cheapest counts found; the cost is the sum over workers of the size of their type.
  Counts run() const {
    std::vector<int> ranks(static_cast<std::size_t>(num_));
    std::iota(ranks.begin(), ranks.end(), 0);
    State best = start();
    do {
      State state = start();
      fill(state, ranks);
      if (cost(state) < cost(best)) best = state;
    } while (std::next_permutation(ranks.begin(), ranks.end()));
    improve(best);
    return best.counts;
  }

 private:
  struct UpSet {
    std::uint32_t family;  ///< bit T: type T is in it
    std::int32_t need;
  };

  bool is_up_set(std::uint32_t family) const {
    for (std::uint32_t members = 1; members <= all_; ++members) {
      if ((family >> members & 1u) == 0) continue;
      for (int bit = 0; bit < num_; ++bit) {
        if ((family >> (members | 1u << bit) & 1u) == 0) return false;
      }
    }
    return true;
  }

  struct State {
    Counts counts{};
    std::vector<std::int32_t> slack;  ///< per up-set: workers(F) - need(F), never negative
  };

  /// Every worker serves everyone: always fits.
  State start() const {
    State state;
    state.counts[all_] = num_workers_;
    for (const UpSet& up_set : up_sets_) state.slack.push_back(num_workers_ - up_set.need);
    return state;
  }

  static std::int32_t cost(const State& state) {
    std::int32_t sum = 0;
    for (std::uint32_t type = 1; type < state.counts.size(); ++type) {
      sum += state.counts[type] * std::popcount(type);
    }
    return sum;
  }

  /// No solution is cheaper: the sum over deployments of the workers that its own experts need.
  std::int32_t least_cost() const {
    std::int32_t sum = 0;
    for (int bit = 0; bit < num_; ++bit) {
      std::uint32_t family = 0;
      for (std::uint32_t type = 1; type <= all_; ++type) family |= (type >> bit & 1u) << type;
      for (const UpSet& up_set : up_sets_) sum += up_set.family == family ? up_set.need : 0;
    }
    return sum;
  }

  /// How many workers of type `from` may become `to`, a subset of it.
  std::int32_t movable(const State& state, std::uint32_t from, std::uint32_t to) const {
    std::int32_t most = state.counts[from];
    for (std::size_t i = 0; i < up_sets_.size() && most > 0; ++i) {
      const std::uint32_t family = up_sets_[i].family;
      if ((family >> from & 1u) > (family >> to & 1u)) most = std::min(most, state.slack[i]);
    }
    return most;
  }

  void move(State& state, std::uint32_t from, std::uint32_t to, std::int32_t count) const {
    if (count == 0) return;
    state.counts[from] -= count;
    state.counts[to] += count;
    for (std::size_t i = 0; i < up_sets_.size(); ++i) {
      const std::uint32_t family = up_sets_[i].family;
      if ((family >> from & 1u) != 0) state.slack[i] -= count;
      if ((family >> to & 1u) != 0) state.slack[i] += count;
    }
  }

  /// Types in the order in which they are worth filling: narrow first, `ranks` decides among
  /// equals.
  std::vector<std::uint32_t> narrow_first(const std::vector<int>& ranks) const {
    std::vector<std::uint32_t> types(all_);
    std::iota(types.begin(), types.end(), 1u);
    const auto key = [&](std::uint32_t type) {
      std::uint32_t ranked = 0;
      for (int bit = 0; bit < num_; ++bit) {
        ranked |= (type >> bit & 1u) << ranks[static_cast<std::size_t>(bit)];
      }
      return std::pair<int, std::uint32_t>{std::popcount(type), ranked};
    };
    std::sort(types.begin(), types.end(),
              [&](std::uint32_t a, std::uint32_t b) { return key(a) < key(b); });
    return types;
  }

  /// Narrows types as far as it goes.
  void fill(State& state, const std::vector<int>& ranks) const {
    const auto order = narrow_first(ranks);
    for (std::uint32_t to : order) {
      for (auto from = order.rbegin(); from != order.rend() && *from != to; ++from) {
        if ((to & ~*from) == 0) move(state, *from, to, movable(state, *from, to));
      }
    }
  }

  /// Widens one worker's type and narrows all again, while that makes it cheaper.
  void improve(State& best) const {
    const std::int32_t least = least_cost();
    for (bool better = true; better && cost(best) > least;) {
      better = false;
      for (std::uint32_t type = 1; type <= all_ && !better; ++type) {
        for (std::uint32_t wide = type + 1; wide <= all_ && !better; ++wide) {
          if ((type & ~wide) == 0 && best.counts[type] > 0) better = widen(best, type, wide);
        }
      }
    }
  }

  bool widen(State& best, std::uint32_t type, std::uint32_t wide) const {
    std::vector<int> ranks(static_cast<std::size_t>(num_));
    std::iota(ranks.begin(), ranks.end(), 0);
    do {
      State state = best;
      move(state, type, wide, 1);
      fill(state, ranks);
      if (cost(state) < cost(best)) {
        best = std::move(state);
        return true;
      }
    } while (std::next_permutation(ranks.begin(), ranks.end()));
    return false;
  }

  int num_;
  std::uint32_t all_;
  std::int32_t num_workers_ = 0;
  std::vector<UpSet> up_sets_;
};

/// Bits of `members` that are in `kept`, moved together.
Members compress(Members members, Members kept) {
  Members out = 0;
  int position = 0;
  for (Members rest = kept; rest != 0; rest &= rest - 1, ++position) {
    if ((members & rest & (~rest + 1)) != 0) out |= Members{1} << position;
  }
  return out;
}

/// Layers seen by the deployments in `active` only; experts that none of them keeps are left out.
std::vector<MemberCounts> restrict_to(const std::vector<MemberCounts>& layers, Members active) {
  std::vector<MemberCounts> restricted(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const auto& [members, count] : layers[i]) {
      if ((members & active) != 0) restricted[i].emplace_back(members & active, count);
    }
  }
  return restricted;
}

std::vector<Members> types_of_shell(const std::vector<MemberCounts>& layers,
                                    std::int32_t capacity,
                                    Members active,
                                    std::int32_t num_workers) {
  const int num = std::popcount(active);
  if (num > kMaxExact) return grow_worker_types(layers, capacity, num_workers);
  std::vector<MemberCounts> compressed = layers;
  for (auto& layer : compressed) {
    for (auto& [members, count] : layer) members = compress(members, active);
  }
  const TypeSearch::Counts counts = TypeSearch(compressed, capacity, num).run();
  std::vector<Members> bits;
  for (Members rest = active; rest != 0; rest &= rest - 1) bits.push_back(rest & (~rest + 1));
  std::vector<Members> types;
  for (std::uint32_t type = 1; type < counts.size(); ++type) {
    Members members = 0;
    for (std::size_t bit = 0; bit < bits.size(); ++bit) {
      if ((type >> bit & 1u) != 0) members |= bits[bit];
    }
    types.insert(types.end(), static_cast<std::size_t>(counts[type]), members);
  }
  return types;
}

/// Exactly ceil(most experts in a layer / capacity) types.
std::vector<Members> types_of(const std::vector<MemberCounts>& all_layers,
                              std::int32_t capacity,
                              Members active) {
  const auto layers = restrict_to(all_layers, active);
  std::int32_t num_workers = 0;
  Members common = active;
  for (const MemberCounts& layer : layers) {
    std::int32_t experts = 0;
    for (const auto& [members, count] : layer) {
      experts += count;
      common &= members;
    }
    num_workers = std::max(num_workers, ceil_div(experts, capacity));
  }
  if (num_workers == 0) return {};
  if (common == 0) {
    auto types = types_of_shell(layers, capacity, active, num_workers);
    MOIETY_CHECK(types.size() == static_cast<std::size_t>(num_workers),
                 "the search changed the number of workers");
    return types;
  }
  // `common` keep every expert that anyone keeps: they need all the workers, whatever the rest
  // does.
  std::vector<Members> types = types_of(layers, capacity, active & ~common);
  for (Members& type : types) type |= common;
  types.resize(static_cast<std::size_t>(num_workers), common);
  return types;
}

/// Sort key that puts a worker of deployments {0} before {0, 1} before {1}, and the serving of few
/// last.
Members reversed(Members members) {
  Members out = 0;
  for (int bit = 0; bit < 64; ++bit) {
    if ((members >> bit & 1u) != 0) out |= Members{1} << (63 - bit);
  }
  return out;
}

}  // namespace

std::vector<Members> choose_worker_types(const std::vector<MemberCounts>& layers,
                                         std::int32_t capacity) {
  MOIETY_CHECK(capacity > 0, "workers need room for experts");
  Members active = 0;
  for (const MemberCounts& layer : layers) {
    for (const auto& [members, count] : layer) active |= members;
  }
  std::vector<Members> types = types_of(layers, capacity, active);
  std::stable_sort(types.begin(), types.end(),
                   [](Members a, Members b) { return reversed(a) > reversed(b); });
  return types;
}

}  // namespace moiety::planner
