// What ClusterMoe does about workers that are late, silent or lost while a layer waits for them.
#include <algorithm>
#include <utility>

#include "router/choose_owners.h"
#include "router/cluster_moe.h"

namespace moiety {
namespace {

constexpr std::chrono::milliseconds kNoSteps{100};

std::string no_answer_within(std::chrono::nanoseconds time) {
  std::string why = "it did not answer within ";
  why += std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(time).count());
  why += " ms";
  return why;
}

}  // namespace

void ClusterMoe::lose(WorkerId worker, Fleet::Loss how, const std::string& why) {
  if (fleet_.connected(worker)) {
    ++stats_.lost[Fleet::name(how)];
    fleet_.lose(*lane_, worker, how, why);
  }
  ask_others(worker);
}

/// What a lost worker still owes is asked from others. Calls itself (through dispatch and lose)
/// when they turn out to be lost too; each time one worker fewer is connected.
void ClusterMoe::ask_others(WorkerId lost) {
  const auto now = Clock::now();
  std::chrono::nanoseconds noticed_after{0};
  for (Flight& flight : flights_) {
    std::vector<std::uint32_t> slots;
    for (Part& part : flight.parts) {
      if (part.worker != lost || part.state != Part::State::kOpen) continue;
      close(flight, part, Part::State::kDead);
      noticed_after = std::max<std::chrono::nanoseconds>(noticed_after, now - part.sent_at);
      if (part.hedge_of != nullptr) {
        drop_hedges(flight, *part.hedge_of);  // it is still waited for itself
      } else if (part.hedged && has_hedges(flight, part)) {
        adopt_hedges(flight, part);
      } else {
        slots.insert(slots.end(), part.slots.begin(), part.slots.end());
      }
    }
    if (slots.empty()) continue;
    std::sort(slots.begin(), slots.end());
    dispatch(flight, slots, true);
  }
  stats_.detection += noticed_after;
}

void ClusterMoe::give_up_silent(Flight& flight, Clock::time_point now) {
  std::vector<std::pair<WorkerId, std::chrono::nanoseconds>> silent;
  for (const Part& part : flight.parts) {
    if (part.state != Part::State::kOpen || now < part.overdue) continue;
    silent.emplace_back(part.worker, fleet_.allowed(part.worker, part.rows.size()));
    fleet_.add_silence(part.worker, part.rows.size(), silent.back().second);
  }
  for (const auto& [worker, allowed] : silent)
    lose(worker, Fleet::Loss::kSilent, no_answer_within(allowed));
}

/// The same for workers whose answer nobody needs any more. What passed while no step ran is not
/// their silence.
void ClusterMoe::give_up_owing() {
  const auto now = Clock::now();
  if (now - looked_at_ > kNoSteps) fleet_.postpone_owed(now - looked_at_);
  looked_at_ = now;
  for (const auto& [worker, waited] : fleet_.overdue(now)) {
    // It will have been slow, if it comes back.
    fleet_.add_silence(worker, fleet_.workers().at(worker).owed->rows, waited);
    lose(worker, Fleet::Loss::kSilent, no_answer_within(waited));
  }
}

void ClusterMoe::close(Flight& flight, Part& part, Part::State state) {
  if (part.state == Part::State::kOpen) --flight.num_open;
  part.state = state;
}

bool ClusterMoe::has_hedges(const Flight& flight, const Part& part) const {
  return std::any_of(flight.parts.begin(), flight.parts.end(),
                     [&](const Part& other) { return other.hedge_of == &part; });
}

void ClusterMoe::drop_hedges(Flight& flight, const Part& part) {
  for (Part& hedge : flight.parts) {
    if (hedge.hedge_of != &part) continue;
    close(flight, hedge, Part::State::kDead);
    hedge.hedge_of = nullptr;
  }
}

void ClusterMoe::adopt_hedges(Flight& flight, const Part& part) {
  for (Part& hedge : flight.parts) {
    if (hedge.hedge_of == &part) hedge.hedge_of = nullptr;
  }
}

/// A hedge was answered: when all of its part's are, the part itself is no longer waited for.
void ClusterMoe::settle_hedges(Flight& flight, Part& late) {
  for (const Part& hedge : flight.parts) {
    if (hedge.hedge_of == &late && hedge.state != Part::State::kDone) return;
  }
  adopt_hedges(flight, late);
  close(flight, late, Part::State::kDead);
  ++stats_.hedges_won;
  fleet_.owes(late.worker, {late.header, late.sent_at, late.overdue, late.rows.size()});
}

/// Asks others too for what is late, where all of it is held by others.
void ClusterMoe::hedge_late(Flight& flight, Clock::time_point now) {
  for (std::size_t i = 0; i < flight.parts.size(); ++i) {  // it grows
    Part& part = flight.parts[i];
    if (part.state == Part::State::kOpen && !part.hedged && part.hedge_at && now >= *part.hedge_at)
      hedge(flight, part);
  }
}

void ClusterMoe::hedge(Flight& flight, Part& late) {
  late.hedged = true;  // once
  const MoeLayerInput& input = flight.input;
  const std::size_t top_k = static_cast<std::size_t>(input.top_k);
  std::vector<WorkerId> chosen(late.slots.size());
  std::vector<std::vector<WorkerId>> others;
  std::vector<std::int32_t> experts;
  for (std::size_t begin = 0, end = 0; begin < late.slots.size(); begin = end) {
    const std::size_t row = late.slots[begin] / top_k;
    others.clear();
    experts.clear();
    for (; end < late.slots.size() && late.slots[end] / top_k == row; ++end) {
      experts.push_back(input.topk_ids[late.slots[end]]);
      others.push_back(fleet_.owners(input.layer, experts.back()));
      std::erase(others.back(), late.worker);
      if (others.back().empty()) return;
    }
    std::vector<const std::vector<WorkerId>*> owners;
    for (const std::vector<WorkerId>& each : others) owners.push_back(&each);
    choose_owners(owners, hash_experts(experts), std::span(chosen).subspan(begin, end - begin));
  }
  ++stats_.hedges;
  send_parts(flight, late.slots, chosen, &late);
}

}  // namespace moiety
