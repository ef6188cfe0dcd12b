#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/placement.h"
#include "fabric/lane.h"
#include "router/reply_times.h"
#include "router/step_backend.h"

namespace moiety {

/// Stands for this router itself among the owners of experts that it holds.
inline constexpr WorkerId kThisRouter{0xffff'ffffu};

/// The workers of the current epoch as one router sees them: who is connected, and whom to ask for
/// an expert.
///
/// A switch to a new epoch begins with apply(): workers that are new are connected to, and experts
/// are asked from their new owners as soon as those are connected, until then from their old ones,
/// which keep them until every router has confirmed the switch. A worker that started again since
/// the old epoch holds what the new one says, and is no old owner. The switch is over when each
/// worker of the new epoch is connected or given up. A worker that the new placement names without
/// an address is lost; one that it does not name is asked until the switch is over.
///
/// A worker that was lost or cannot be reached is tried again, after 0.1 s and then less and less
/// often, as long as the epoch has its address: a cut may heal. Connecting costs nobody anything,
/// so that is tried every 2 s at least; a worker that accepts a lane and then does not answer costs
/// a wait each time, so that gets as rare as every 60 s. Confined to the step loop's thread.
class Fleet {
 public:
  /// A dispatch that others have answered in its place.
  struct Owed {
    fabric::Header header;
    Clock::time_point sent_at;
    Deadline overdue;
    std::size_t rows = 0;
  };

  struct Worker {
    enum class State : std::uint8_t { kConnecting, kConnected, kDown };
    std::uint64_t incarnation = 0;
    std::string address;
    State state = State::kDown;
    bool awaited = false;     ///< the switch under way waits for its connection
    bool retiring = false;    ///< not of the new epoch
    bool suspected = false;   ///< reported since it was last connected
    bool untried = false;     ///< kDown because this process could not try to connect
    Clock::time_point retry;  ///< kDown: when to connect again
    std::chrono::milliseconds backoff{0};
    ReplyTimes times;
    std::optional<Owed> owed;  ///< the first of them; until it is answered, others are preferred
  };

  /// How a worker was found to be lost.
  enum class Loss : std::uint8_t {
    kConnection,  ///< its lane ended, or cannot be opened
    kUntried,     ///< this process lacks what a lane needs: that says nothing of the worker
    kSilent,      ///< a reply is overdue
    kRefused,     ///< it cannot compute what it should
    kEpoch,       ///< the coordinator says so: it need not be told, and is not tried again
  };
  static const char* name(Loss loss);

  Fleet(std::chrono::milliseconds connect_timeout,
        const ReplyLimits& limits,
        SuspectCallback on_suspect);

  /// Begins a switch.
  void apply(fabric::RouterLane& lane, const EpochView& view);
  /// The switch that was begun last is not over before set_local() either.
  void await_local() { local_awaited_ = true; }
  /// The experts that this router holds; asked from nobody else.
  void set_local(std::vector<ExpertId> experts);
  /// Once when the switch is over: the workers that cannot be reached. Those of Loss::kUntried are
  /// not among them.
  std::optional<std::vector<WorkerId>> applied(fabric::RouterLane& lane);

  void on_connected(WorkerId worker);
  /// A connection ended, or could not be made.
  void on_lost(WorkerId worker, const Error& why);
  /// Gives a connected worker up.
  void lose(fabric::RouterLane& lane, WorkerId worker, Loss how, const std::string& why);
  /// Connects again to those whose time has come.
  void retry(fabric::RouterLane& lane);
  /// When retry() or applied() has something to do.
  Deadline next_timer() const;

  /// Of the newest epoch.
  Epoch epoch() const { return target_.epoch; }
  const std::map<WorkerId, Worker>& workers() const { return workers_; }
  bool connected(WorkerId worker) const;
  /// Connected workers to ask for an expert, ascending, or kThisRouter alone; empty: out of reach.
  const std::vector<WorkerId>& owners(std::int32_t layer, std::int32_t expert) const;
  /// A worker that the newest epoch names for an expert, whatever has become of it.
  std::optional<WorkerId> placed(std::int32_t layer, std::int32_t expert) const;

  /// Whether the newest epoch wants routers to hold it.
  bool placed_here(std::int32_t layer, std::int32_t expert) const;
  const std::vector<ExpertId>& placed_here() const { return target_.router_experts; }

  /// Rises when experts may have come into reach.
  std::uint64_t gained() const { return gained_; }
  ReachableExperts reachable() const;

  void add_time(WorkerId worker, std::size_t rows, std::chrono::nanoseconds time);
  /// It did not answer for so long: if it was only slow, it gets more time when it is back.
  void add_silence(WorkerId worker, std::size_t rows, std::chrono::nanoseconds time);
  /// How long a reply of so many rows may take; a worker that was not heard yet is judged by the
  /// others.
  std::chrono::nanoseconds allowed(WorkerId worker, std::size_t rows) const;
  /// As reply_times.h says, the same for one step once it is known; before, by the replies of all
  /// workers together.
  std::optional<std::chrono::nanoseconds> hedge_after(std::size_t rows);
  void begin_step() { hedge_after_.fill({}); }

  /// Others have answered in its place: it is not asked for what others hold until it answers.
  void owes(WorkerId worker, const Owed& owed);
  /// A late reply.
  void settle(WorkerId worker, const fabric::Header& header);
  void postpone_owed(Clock::duration by);
  /// Connected workers whose late reply is overdue, and how long it was waited for.
  std::vector<std::pair<WorkerId, std::chrono::nanoseconds>> overdue(Clock::time_point now) const;

 private:
  void connect(fabric::RouterLane& lane, WorkerId id, Worker& worker);
  void down(WorkerId id, Worker& worker, Loss how, const std::string& why);
  void suspect(WorkerId id, Worker& worker, const std::string& why);
  /// Whether this worker, one of workers_, is the process that the old epoch named.
  bool is_of_base(WorkerId id) const;
  void rebuild_routes();

  const std::chrono::milliseconds connect_timeout_;
  const ReplyLimits limits_;
  const SuspectCallback on_suspect_;
  Placement base_;                                       // of the last switch that is over
  std::map<WorkerId, std::uint64_t> base_incarnations_;  // of the workers that its view named
  Placement target_;                                     // of the newest view
  bool switching_ = false;
  Deadline switch_until_;
  bool local_awaited_ = false;
  std::set<ExpertId> local_;
  std::set<WorkerId> missing_;  // workers of the target without an address
  std::map<WorkerId, Worker> workers_;
  std::vector<std::vector<std::vector<WorkerId>>> routes_;  // [layer][expert]
  std::uint64_t gained_ = 0;
  ReplyTimes all_times_;
  // Of this step, by bit_width(rows).
  std::array<std::optional<std::chrono::nanoseconds>, 65> hedge_after_;
};

}  // namespace moiety
