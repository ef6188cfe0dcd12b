#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/admin_api.h"
#include "coordinator/fleet.h"
#include "coordinator/metrics.h"
#include "coordinator/run_file.h"
#include "coordinator/state.h"
#include "coordinator/status_json.h"
#include "coordinator/store.h"
#include "http/server.h"
#include "proto/channel.h"

namespace moiety::coordinator {

struct RuntimeOptions {
  proto::ChannelServerOptions control;
  http::ServerOptions admin;
  bool admin_token = false;       ///< callers of the admin API must show the cluster's token
  std::filesystem::path run_dir;  ///< empty: no coordinator.json
  std::vector<Deployment> first;
  /// Keeps the state; what it restored is where the cluster goes on. Where `control` and `admin`
  /// leave the port open, the one it had before is tried first.
  std::optional<Store> store;
  /// Makes the fleet once the address that workers connect to is known.
  std::function<std::unique_ptr<Fleet>(const std::string& control_address)> make_fleet;
  /// Called once, on the loop, when peers and admins can connect; may be empty.
  std::function<void(const RunInfo&)> on_listening;
  /// Called once, on the loop, when the first deployments are served.
  std::function<void(const RunInfo&)> on_ready;
};

/// Connects ClusterState with the world: sockets, processes, HTTP, the state file.
///
/// Nothing that follows from an event is done before the state is on the disk. When it cannot be
/// written (a full disk), a change is refused as if it had not been asked for. After any other
/// event the actions are held and done, in their order, once it can be written; until then changes
/// are refused, and routers and workers go on with what they have.
///
/// One loop, in run(), owns the state machine and the fleet. Everything else (the threads of the
/// control channel and of the admin server, a signal) only puts work into its queue.
class Runtime {
 public:
  Runtime(ClusterConfig config, RuntimeOptions options);
  ~Runtime();

  /// Serves until a shutdown is complete. An error: a listener could not be opened, or the first
  /// deployments failed (everything that was started has been stopped).
  Result<void> run();
  /// Begins to shut down; any thread.
  void shut_down(std::string reason);

 private:
  using Work = std::function<void()>;
  void post(Work work);
  void post_event(Event event);
  Result<RunInfo> open();
  void loop();

  Result<void> listen();
  void adopt_workers();

  // On the loop:
  void handle(Event event);
  void handle_one(Event& event);
  /// False: the state could not be written, and nothing was done.
  bool perform(std::vector<Action> actions);
  Result<void> persist(const DurableState& state);
  void retry_persist(Clock::time_point now);
  void execute(Action& action);
  void accept(const AcceptOperation& accepted);
  void complete(const CompleteOperation& done);
  void answer(const AdminCall& call, const std::shared_ptr<http::Responder>& responder);
  void submit(const AdminChange& change, const std::shared_ptr<http::Responder>& responder);
  http::Response error_response(const Error& error) const;
  void record(LogLevel level, std::string text);

  /// A change that was asked for over HTTP.
  struct Caller {
    std::shared_ptr<http::Responder> responder;  // null once it was answered
    bool wait = true;
  };

  const AdminContext admin_context_;
  RuntimeOptions options_;
  std::unique_ptr<ClusterState> state_;
  RunInfo info_;
  std::unique_ptr<Fleet> fleet_;
  std::deque<Event> events_;  // to handle next, from the loop itself
  std::uint64_t requests_ = 0;
  std::map<RequestId, Caller> callers_;
  std::deque<Decision> decisions_;
  std::uint64_t decision_count_ = 0;
  RuntimeCounts counts_;
  RuntimeStatus runtime_status_;
  // While the state cannot be written: the latest one, and what waits for it.
  std::shared_ptr<const DurableState> unwritten_;
  std::vector<Action> held_;
  Clock::time_point persist_again_at_;
  bool ending_ = false;  // a shutdown was asked for: nothing waits for the disk any more
  RequestId first_request_;
  std::optional<Error> first_error_;
  bool exit_ = false;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> work_;  // guarded by mutex_

  // Last, so that their threads end before what they post to.
  std::unique_ptr<proto::ChannelServer> control_;
  std::unique_ptr<http::Server> admin_;
};

/// "host:port" to connect to for a listener; a wildcard host becomes the loopback address.
std::string reachable_address(const std::string& host, std::uint16_t port);

}  // namespace moiety::coordinator
