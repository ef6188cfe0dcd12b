#pragma once

#include <map>
#include <vector>

#include "coordinator/fleet.h"

namespace moiety::coordinator {

/// Workers that somebody else starts: by hand on several hosts, by mpirun, by Slurm. They join with
/// the token, under ids of their own. Nothing is started or ended here: what the state machine
/// closes the connection of counts as ended.
class StaticFleet : public Fleet {
 public:
  Result<ProcessIdentity> start(WorkerId, std::uint64_t) override { return ProcessIdentity{}; }
  bool adopt(WorkerId, std::uint64_t, const ProcessIdentity&) override { return true; }
  void stop(WorkerId worker, std::uint64_t incarnation, Clock::time_point) override {
    ended_[worker] = incarnation;
  }
  void kill(WorkerId worker, std::uint64_t incarnation) override { ended_[worker] = incarnation; }
  std::vector<Exited> poll(Clock::time_point) override {
    std::vector<Exited> exited;
    for (const auto& [worker, incarnation] : ended_)
      exited.push_back({worker, incarnation, "its connection was closed"});
    ended_.clear();
    return exited;
  }

 private:
  std::map<WorkerId, std::uint64_t> ended_;  // since the last poll
};

}  // namespace moiety::coordinator
