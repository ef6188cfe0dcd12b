#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/ids.h"
#include "common/placement.h"
#include "common/result.h"

/// What coordinator, routers and workers say to each other, as plain types. The protobuf classes
/// stay inside proto/; convert.h turns these into bytes and back.
///
/// A conversation: the client sends Hello; the coordinator answers Welcome, or Refuse and closes.
/// Then
///   worker  -> coordinator  WorkerHeartbeat, ExpertsReady
///   coordinator -> worker   LoadExperts, DropExperts, Shutdown
///   router  -> coordinator  RouterHeartbeat, EpochActive, WorkerSuspect, ExpertLoad
///   coordinator -> router   PublishEpoch, Shutdown
namespace moiety::proto {

/// Peers with another version are refused.
inline constexpr std::uint32_t kProtocolVersion = 2;

/// The longest encoded message.
inline constexpr std::size_t kMaxMessageBytes = std::size_t{64} << 20;

enum class Role : std::uint8_t { kWorker = 1, kRouter = 2, kAdmin = 3 };

/// The first message of a client.
struct Hello {
  std::uint32_t protocol_version = kProtocolVersion;
  Role role = Role::kWorker;
  std::optional<std::uint32_t> id;  ///< WorkerId or RouterId by role; absent: the coordinator picks
  std::uint64_t incarnation = 0;    ///< not 0; differs between starts, whatever the id
  std::string token;                ///< shared secret; compare with secrets_equal
  std::int64_t pid = 0;
  std::string build;         ///< the program's version, for people
  std::string lane_address;  ///< workers: opaque bytes of the fabric; otherwise empty
  std::string http_address;  ///< "host:port" of this process's HTTP (API, metrics); may be empty
  std::string fingerprint;   ///< of the checkpoint this process opened; empty for admin
  /// Workers: bytes of packed experts that this process may hold; 0 = as the coordinator is set.
  std::uint64_t capacity_bytes = 0;
  /// Workers: the experts held now, ascending. A coordinator that was restarted adopts the worker.
  std::vector<ExpertId> resident;
  /// Routers: the epoch that steps use now; 0 = none yet.
  Epoch epoch;
  bool operator==(const Hello&) const = default;
};

struct Welcome {
  std::string coordinator_instance;  ///< another value: the coordinator was restarted
  std::uint32_t assigned_id = 0;     ///< WorkerId or RouterId by role
  std::chrono::milliseconds lease_ttl{0};
  std::chrono::milliseconds heartbeat_interval{0};
  bool operator==(const Welcome&) const = default;
};

/// Instead of Welcome; the connection is then closed.
struct Refuse {
  Error error;
};

/// Counters are since the process started unless said otherwise.
struct WorkerStats {
  std::uint64_t bytes_resident = 0;    ///< of expert weights, now
  std::uint64_t bytes_read = 0;        ///< from the checkpoint
  std::uint64_t experts_resident = 0;  ///< now
  std::uint64_t rows_processed = 0;    ///< (token, expert) pairs
  std::uint64_t dispatches = 0;        ///< lane messages answered
  bool operator==(const WorkerStats&) const = default;
};

struct WorkerHeartbeat {
  WorkerStats stats;
  bool operator==(const WorkerHeartbeat&) const = default;
};

/// Read these experts (those already held are kept and cost nothing), then answer ExpertsReady.
struct LoadExperts {
  Epoch epoch;
  std::vector<ExpertId> experts;  ///< ascending
  bool operator==(const LoadExperts&) const = default;
};

/// Everything that LoadExperts of this epoch named is resident, or `error` says why not.
struct ExpertsReady {
  Epoch epoch;
  std::uint64_t bytes_read = 0;  ///< for this LoadExperts
  std::optional<Error> error;
};

/// Forget all experts but these. Sent when every router left the epochs that used the others.
struct DropExperts {
  Epoch epoch;
  std::vector<ExpertId> keep;  ///< ascending
  bool operator==(const DropExperts&) const = default;
};

/// Finish and exit.
struct Shutdown {
  std::string reason;
  bool operator==(const Shutdown&) const = default;
};

/// Switch to this epoch between two steps, then answer EpochActive.
struct PublishEpoch {
  EpochView view;
  bool operator==(const PublishEpoch&) const = default;
};

/// The router's steps now use this epoch and no earlier one; with a `problem` they do not yet.
struct EpochActive {
  Epoch epoch;
  std::vector<WorkerId> lost_workers;  ///< of the placement, that this router could not reach
  /// Why the experts that routers shall hold in this epoch are not there. It tries again by itself,
  /// and serves with the epoch before meanwhile.
  std::string problem = {};
  bool operator==(const EpochActive&) const = default;
};

struct RouterStats {
  Epoch epoch;                ///< that steps used when the counts of requests were taken
  std::uint64_t running = 0;  ///< requests, now
  std::uint64_t waiting = 0;  ///< requests, now
  std::uint64_t parked = 0;   ///< of those running, how many wait for lost experts, now
  std::map<std::string, std::uint64_t>
      running_per_deployment;  ///< running and waiting, now, by name
  std::uint64_t requests_total = 0;
  std::uint64_t prompt_tokens_total = 0;
  std::uint64_t generation_tokens_total = 0;
  std::uint64_t experts_resident = 0;  ///< that it holds itself, now
  std::uint64_t bytes_resident = 0;    ///< of those
  bool operator==(const RouterStats&) const = default;
};

struct RouterHeartbeat {
  RouterStats stats;
  bool operator==(const RouterHeartbeat&) const = default;
};

/// A lane to this worker failed or timed out.
struct WorkerSuspect {
  WorkerId worker;
  std::uint64_t incarnation = 0;
  std::string reason;
  bool operator==(const WorkerSuspect&) const = default;
};

/// Tokens that selected each routed expert since the last report of this router that was sent. A
/// statistic: what a lost connection swallows is not sent again.
struct ExpertLoad {
  std::vector<std::vector<std::uint64_t>> tokens;  ///< [layer][expert]; dense layers are empty
  bool operator==(const ExpertLoad&) const = default;
};

using ControlMessage = std::variant<Hello,
                                    Welcome,
                                    Refuse,
                                    WorkerHeartbeat,
                                    LoadExperts,
                                    ExpertsReady,
                                    DropExperts,
                                    Shutdown,
                                    PublishEpoch,
                                    EpochActive,
                                    RouterHeartbeat,
                                    WorkerSuspect,
                                    ExpertLoad>;

}  // namespace moiety::proto
