#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coordinator/admin_api.h"
#include "coordinator/fleet.h"
#include "coordinator/run_file.h"
#include "coordinator/state.h"
#include "coordinator/status_json.h"
#include "http/server.h"
#include "proto/channel.h"

namespace moiety::coordinator {

struct RuntimeOptions {
  proto::ChannelServerOptions control;
  http::ServerOptions admin;
  std::filesystem::path run_dir;  ///< empty: no coordinator.json
  std::vector<Deployment> first;
  /// Makes the fleet once the address that workers connect to is known.
  std::function<std::unique_ptr<Fleet>(const std::string& control_address)> make_fleet;
  /// Called once, on the loop, when the first deployments are served.
  std::function<void(const RunInfo&)> on_ready;
};

/// Connects ClusterState with the world: sockets, processes, HTTP.
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

  // On the loop:
  void handle(Event event);
  void execute(Action& action);
  void complete(OperationId id, const std::optional<Error>& error);
  void answer(const AdminCall& call, std::shared_ptr<http::Responder> responder);
  void submit(Event event, OperationId id, bool wait, std::shared_ptr<http::Responder> responder);
  void record(LogLevel level, std::string text);

  const AdminContext admin_context_;
  RuntimeOptions options_;
  ClusterState state_;
  RunInfo info_;
  std::unique_ptr<Fleet> fleet_;
  std::deque<Event> events_;  // to handle next, from the loop itself
  std::uint64_t operations_ = 0;
  std::map<OperationId, std::shared_ptr<http::Responder>> waiting_;
  std::deque<Decision> decisions_;
  OperationId first_operation_;
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
