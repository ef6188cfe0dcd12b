// What the step loop does about experts that are out of reach.
#include <algorithm>

#include "router/engine.h"

namespace moiety {
namespace {

/// `base` without the experts out of reach; null when that is `base` itself, or when a layer would
/// keep fewer than a token selects. `left_out` counts them.
std::shared_ptr<const GateMask> without_missing(const GateMask* base,
                                                const ReachableExperts& reachable,
                                                const Architecture& architecture,
                                                std::int32_t* left_out) {
  auto mask = std::make_shared<GateMask>();
  *left_out = 0;
  for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
    const MoeDescription& moe = architecture.layers[layer].moe;
    const auto num_routed = static_cast<std::size_t>(moe.num_routed);
    mask->kept.emplace_back();
    if (base != nullptr) mask->kept.back() = base->kept[layer];
    if (num_routed == 0) continue;
    std::vector<std::uint8_t> kept = mask->kept.back();  // empty: all
    if (kept.empty()) kept.assign(num_routed, 1);
    std::int32_t left = 0;
    std::int32_t missing = 0;
    for (std::size_t expert = 0; expert < num_routed; ++expert) {
      if (kept[expert] == 0) continue;
      const bool in_reach = layer < reachable.size() && expert < reachable[layer].size() &&
                            reachable[layer][expert] != 0;
      ++(in_reach ? left : missing);
      kept[expert] = in_reach ? 1 : 0;
    }
    *left_out += missing;
    if (left < moe.top_k) return nullptr;
    if (missing > 0) mask->kept.back() = std::move(kept);
  }
  if (*left_out == 0) return nullptr;
  return mask;
}

/// Whether the placement has every expert of the mask somewhere, lost or not. Embedded mode has
/// none: everything is here.
bool is_placed(const GateMask* mask, const Placement& placement, const Architecture& architecture) {
  const auto& owners = placement.owners;
  if (owners.empty()) return true;
  for (std::size_t layer = 0; layer < architecture.layers.size(); ++layer) {
    const auto num_routed = static_cast<std::size_t>(architecture.layers[layer].moe.num_routed);
    for (std::size_t expert = 0; expert < num_routed; ++expert) {
      const bool kept =
          mask == nullptr || mask->kept[layer].empty() || mask->kept[layer][expert] != 0;
      const bool owned =
          layer < owners.size() && expert < owners[layer].size() && !owners[layer][expert].empty();
      if (!kept || owned) continue;
      const ExpertId id{static_cast<std::int32_t>(layer), static_cast<std::int32_t>(expert)};
      const auto& here = placement.router_experts;
      if (!std::binary_search(here.begin(), here.end(), id)) return false;
    }
  }
  return true;
}

}  // namespace

/// Ends those whose deployment was removed under them while this router was out of the
/// coordinator's reach, if experts that they may need are placed nowhere any more: nothing would
/// ever bring those back. The others finish.
void Engine::end_orphans(const EpochView& view) {
  take_arrivals();
  const auto is_served = [this](const Sequence& sequence) {
    const std::lock_guard lock(mutex_);
    const auto it = served_.find(sequence.request.deployment);
    return it != served_.end() && it->second.mask == sequence.deployed;
  };
  scheduler_.for_each([&](Sequence& sequence) {
    if (is_served(sequence) ||
        is_placed(sequence.deployed.get(), view.placement, model_.architecture()))
      return;
    const std::string& name = sequence.request.deployment;
    finish(
        sequence, FinishReason::kError,
        fail(ErrorCode::kNotFound, (name.empty() ? "the full model" : "deployment '" + name + "'") +
                                       " was removed while the request ran (epoch " +
                                       std::to_string(view.placement.epoch.value) + ")"));
  });
}

/// Lets those try again that wait for experts, when some came into reach.
void Engine::regain() {
  const std::uint64_t gained = backend_.gained();
  if (gained == gained_) return;
  gained_ = gained;
  scheduler_.unpark_all();
  {
    const std::lock_guard lock(mutex_);
    waiting_ = scheduler_.num_waiting();
    parked_.clear();
  }
  std::optional<ReachableExperts> reachable;
  scheduler_.for_each([&](Sequence& sequence) {
    if (sequence.mask == sequence.deployed) return;
    if (!reachable) reachable = backend_.reachable();
    std::int32_t left_out = 0;
    auto mask =
        without_missing(sequence.deployed.get(), *reachable, model_.architecture(), &left_out);
    if (mask == nullptr && left_out > 0) return;  // not enough: it is parked when it fails
    if (mask == nullptr) {
      scheduler_.set_mask(sequence, sequence.deployed);
    } else if (mask->kept != sequence.mask->kept) {
      sequence.masked_experts = std::max(sequence.masked_experts, left_out);
      scheduler_.set_mask(sequence, std::move(mask));
    }
  });
}

/// Goes on without the experts that are out of reach; false where that would keep too few, or
/// changes nothing.
bool Engine::mask_missing(Sequence& sequence) {
  std::int32_t left_out = 0;
  auto mask = without_missing(sequence.deployed.get(), backend_.reachable(), model_.architecture(),
                              &left_out);
  if (mask == nullptr) return false;
  if (sequence.mask != nullptr && mask->kept == sequence.mask->kept) return false;
  if (sequence.masked_experts == 0) {
    const std::lock_guard lock(mutex_);
    ++masked_;
  }
  sequence.masked_experts = std::max(sequence.masked_experts, left_out);
  scheduler_.set_mask(sequence, std::move(mask));
  return true;
}

/// What becomes of a sequence whose rows failed.
void Engine::handle_failure(Sequence& sequence, std::uint8_t failure) {
  if (failure == kRowRefused || sequence.on_missing == MissingPolicy::kFail)
    return finish(sequence, FinishReason::kError, backend_.failure());
  {
    const std::lock_guard lock(mutex_);
    ++retries_;
  }
  if (backend_.gained() != gained_) return;  // something came into reach meanwhile: again at once
  if (sequence.on_missing == MissingPolicy::kMask && mask_missing(sequence)) return;
  scheduler_.park(sequence);
  const std::lock_guard lock(mutex_);
  ++parked_[sequence.request.deployment];
}

}  // namespace moiety
