#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "experts/exchange.h"
#include "fabric/lane.h"
#include "router/fleet.h"
#include "router/local_experts.h"
#include "router/step_backend.h"

namespace moiety {

struct ClusterMoeOptions {
  std::uint64_t router_id = 0;
  CombineMode combine = CombineMode::kPerWorker;
  DType dtype = DType::kBF16;  ///< how rows travel: the model's GEMM input type
  ReplyLimits reply;
  std::chrono::milliseconds connect_timeout{2000};
  /// Without it, experts that an epoch wants routers to hold are missing here.
  std::optional<LocalExpertOptions> local;
};

/// Dispatches each token once to every worker that holds one of its experts, and combines what
/// comes back.
///
/// Every message of a layer is sent before any reply is waited for; a worker that no row selects
/// hears nothing. A worker that is lost or silent inside a layer is dropped and reported through
/// `on_suspect`, and what it owed is asked from other owners of the same experts, within the layer.
/// Rows for which there is none fail with kRowMissing; all others are right.
///
/// Experts that the epoch wants routers to hold are read before the switch to it is over, and
/// computed here while the messages travel.
///
/// A reply that takes longer than usual is asked from other owners as well, where there are any for
/// all of it, and whichever is complete first counts (a hedged request). A worker that lost such a
/// race is not asked again for what others hold until it has answered.
///
/// A reply counts as overdue by the time that the step loop spent waiting for it (ReplyTimes), not
/// by the time since it was asked for; and when this process itself did not run for a while, that
/// does not count either.
class ClusterMoe final : public StepBackend {
 public:
  /// `lane` may be null until attach().
  ClusterMoe(std::unique_ptr<fabric::RouterLane> lane,
             const ClusterMoeOptions& options,
             SuspectCallback on_suspect);
  ~ClusterMoe() override;

  /// Gives it the lane that was opened under the id that the coordinator assigned. Once, before
  /// the first apply(); any thread.
  void attach(std::unique_ptr<fabric::RouterLane> lane, std::uint64_t router_id);

  void begin(const MoeLayerInput& input) override;
  void finish(std::span<float> y, std::span<std::uint8_t> failed) override;
  void begin_step(std::uint64_t step) override;
  void announce(const EpochView& view) override;
  void apply(const EpochView& view) override;
  std::optional<std::vector<WorkerId>> applied() override;
  std::uint64_t gained() const override { return fleet_.gained(); }
  ReachableExperts reachable() const override { return fleet_.reachable(); }
  Error failure() const override { return failure_; }
  void idle_wait(Deadline deadline) override;
  void interrupt() override;
  BackendStats stats() const override;
  HeldExperts held() const override;

 private:
  /// One message to one worker, and its reply; or what this router computes itself.
  struct Part {
    enum class State : std::uint8_t { kOpen, kLocal, kDone, kDead };
    WorkerId worker;
    Dispatch dispatch;
    std::vector<std::uint32_t> rows;   // its rows' numbers in the flight
    std::vector<std::uint32_t> slots;  // per pair: row * top_k + slot, in the flight
    fabric::Header header;
    State state = State::kOpen;
    Clock::time_point sent_at;
    Deadline overdue;
    std::optional<Deadline> hedge_at;  // when others are asked too; none: not for being late
    bool hedged = false;               // they were, or this is such a message itself
    Part* hedge_of = nullptr;          // the late part that this one may take the place of
    std::vector<float> reply;

    void postpone(Clock::duration by) {
      overdue += by;
      if (hedge_at) *hedge_at += by;
    }
  };
  /// A layer that was begun and not finished.
  struct Flight {
    MoeLayerInput input;
    std::deque<Part> parts;  // this router's, then in order of workers, then what was sent again
    std::vector<std::uint8_t> row_failed;  // a RowFailure
    Clock::time_point sent_at;
    Clock::time_point last_reply;
    const Part* slowest = nullptr;  // whose reply came last
    fabric::Header slowest_stamps;
    std::size_t num_open = 0;
  };
  /// What announce() told.
  struct News {
    std::map<WorkerId, std::uint64_t> incarnations;
    std::set<WorkerId> placed;
  };

  void dispatch(Flight& flight, std::span<const std::uint32_t> slots, bool again);
  void assign(Flight& flight,
              std::span<const std::uint32_t> slots,
              std::vector<std::uint32_t>& kept,
              std::vector<WorkerId>& chosen);
  Part& add_part(Flight& flight, WorkerId worker, std::uint32_t round);
  void send_parts(Flight& flight,
                  std::span<const std::uint32_t> slots,
                  std::span<const WorkerId> chosen,
                  Part* hedge_of);
  void run_local(Flight& flight);
  void fill(Flight& flight, Part& part, std::uint32_t slot);
  void row_missing(Flight& flight, std::size_t row, std::int32_t expert);
  void await(Flight& flight);
  void give_up_silent(Flight& flight, Clock::time_point now);
  void give_up_owing();
  void handle(const fabric::Event& event);
  void take_reply(Flight& flight, Part& part, const fabric::Event& event);
  void take_error(Flight& flight, Part& part, const fabric::Event& event);
  void lose(WorkerId worker, Fleet::Loss how, const std::string& why);
  void ask_others(WorkerId lost);
  void close(Flight& flight, Part& part, Part::State state);
  void hedge_late(Flight& flight, Clock::time_point now);
  void hedge(Flight& flight, Part& late);
  bool has_hedges(const Flight& flight, const Part& part) const;
  void drop_hedges(Flight& flight, const Part& part);
  void adopt_hedges(Flight& flight, const Part& part);
  void settle_hedges(Flight& flight, Part& late);
  void take_news();
  void count_wait(const Flight& flight);
  void combine_per_worker(const Flight& flight, std::span<float> y);
  void combine_per_expert(const Flight& flight, std::span<float> y);

  std::unique_ptr<fabric::RouterLane> lane_;  // set under mutex_, once
  ClusterMoeOptions options_;
  Fleet fleet_;
  std::uint64_t step_ = 0;
  std::deque<Flight> flights_;         // oldest first
  std::vector<std::uint32_t> rounds_;  // per layer: dispatches of this step so far
  Clock::time_point looked_at_;        // when a wait for replies was last over
  Error failure_;
  BackendStats stats_;
  bool interrupted_ = false;  // seen where nobody was idle: the next idle_wait() ends at once

  std::mutex mutex_;
  std::condition_variable attached_;
  bool interrupted_before_lane_ = false;  // guarded by mutex_
  std::optional<News> news_;              // guarded by mutex_

  std::unique_ptr<LocalExperts> local_;  // its thread calls interrupt()
};

}  // namespace moiety
