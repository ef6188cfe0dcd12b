#pragma once

#include <ucp/api/ucp.h>

#include <atomic>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/result.h"
#include "fabric/lane.h"
#include "fabric/ucx/context.h"
#include "fabric/usual_wait.h"

namespace moiety::fabric::ucx {

/// Active message ids. A hello is all payload; a message has a WireHeader as its active message
/// header.
inline constexpr unsigned kHelloId = 1;
inline constexpr unsigned kMessageId = 2;

/// The active message header of every lane message. The transport does not promise order between
/// short, long and rendezvous messages, so each direction of a connection counts its messages.
struct WireHeader {
  Header header;
  std::uint64_t sequence = 0;
};
static_assert(sizeof(WireHeader) == 88);

/// One endpoint. Exists in Engine's maps until it is closed; holders of a shared_ptr then see
/// `broken`.
struct Connection {
  enum class State : std::uint8_t {
    kGreeting,  ///< no verdict on the hello yet
    kOpen,      ///< messages flow; its loss is an event
    kRefused,   ///< the port said no and waits for the router to hang up
  };
  struct Arrival {
    Event event;
    bool complete = false;  ///< false while a rendezvous payload is being fetched
  };
  ucp_ep_h endpoint = nullptr;
  std::uint64_t peer = 0;  ///< worker id at a router, lane number at a port
  bool dialled = false;    ///< by us; else accepted
  State state = State::kGreeting;
  bool broken = false;
  std::string why;  ///< it broke
  std::uint64_t next_to_send = 0;
  std::uint64_t next_to_deliver = 0;
  std::map<std::uint64_t, Arrival> arrivals;  ///< by sequence, those that may not be delivered yet
  std::vector<std::byte> hello;               ///< what the peer said first; empty: nothing yet
};

/// What ports and router lanes share: endpoints, active messages, and waiting.
///
/// UCX calls our callbacks inside ucp_worker_progress() and inside sends. They only copy data and
/// set flags; endpoints are opened and closed after progress, never inside a callback. Confined to
/// one thread, except interrupt(). Payloads in flight live in `outgoing_` and `fetches_` until UCX
/// has let go of them, even when their connection is gone.
class Engine {
 public:
  /// `host`: of the only network interface to use; empty: all.
  static Result<std::unique_ptr<Engine>> create(const std::string& host = "");
  /// Closes all endpoints at once, makes a bounded number of progress rounds, and frees everything.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Listens on a free port; returns its address. Connections get the peers 1, 2, ...
  Result<std::string> listen(const std::string& host);
  /// Starts to connect and returns at once; failure is a kPeerLost event.
  Result<std::shared_ptr<Connection>> dial(const std::string& address, std::uint64_t peer);
  /// Closes a peer's endpoint at once, if there is one, and drops what has arrived from it. No
  /// event follows.
  void forget(std::uint64_t peer);
  /// The connection of a peer, null when there is none or it is broken.
  std::shared_ptr<Connection> find(std::uint64_t peer) const;

  void send_hello(const std::shared_ptr<Connection>& connection, std::vector<std::byte> bytes);
  /// False when the connection turned out to be broken.
  bool send(const std::shared_ptr<Connection>& connection,
            const Header& header,
            std::vector<std::byte> payload);

  /// The body of wait(): progresses until there is an event. Spins briefly, then sleeps.
  /// `each_round` runs after each progress, at least once, and may add events.
  Event wait(Deadline deadline, const std::function<void()>& each_round);
  /// Connections whose hello arrived since the last call.
  std::vector<std::shared_ptr<Connection>> take_hellos() { return std::exchange(hellos_, {}); }
  /// Queues an event for wait().
  void add(Event event) { events_.push_back(std::move(event)); }
  void interrupt();

  std::uint64_t bytes_sent() const { return bytes_sent_; }
  std::uint64_t bytes_received() const { return bytes_received_; }

 private:
  struct Outgoing {
    Engine* engine = nullptr;
    std::weak_ptr<Connection> connection;
    WireHeader header;
    std::vector<std::byte> payload;
    std::list<Outgoing>::iterator self;
  };
  struct Fetch {
    Engine* engine = nullptr;
    std::weak_ptr<Connection> connection;
    std::uint64_t sequence = 0;
    std::vector<std::byte> buffer;
    std::list<Fetch>::iterator self;
  };
  struct Greeting {
    std::weak_ptr<Connection> connection;
    Clock::time_point expires;
  };

  Engine(Context context, int wake_fd) : context_(std::move(context)), wake_fd_(wake_fd) {}
  Result<void> set_handlers();
  Result<std::shared_ptr<Connection>> open_endpoint(ucp_ep_params_t params, std::uint64_t peer);
  void post(unsigned am_id,
            const std::shared_ptr<Connection>& connection,
            const WireHeader& header,
            std::vector<std::byte> payload);

  bool progress();
  void accept_requests();
  void reap_broken();
  void expire_greetings();
  void close_endpoint(ucp_ep_h endpoint);
  void mark_broken(const std::shared_ptr<Connection>& connection, std::string why);
  std::shared_ptr<Connection> find_endpoint(const ucp_am_recv_param_t& param) const;
  void sleep(Deadline until);

  /// What is wrong with a message; empty when it was taken.
  std::string message_arrived(const std::shared_ptr<Connection>& connection,
                              std::span<const std::byte> header,
                              void* data,
                              std::size_t length,
                              bool rendezvous);
  void fetch(const std::shared_ptr<Connection>& connection,
             std::uint64_t sequence,
             void* descriptor,
             std::vector<std::byte> buffer);
  void fetched(Fetch& fetch, ucs_status_t status);
  void deliver_complete(Connection& connection);

  static ucs_status_t on_hello(void* engine,
                               const void* header,
                               std::size_t header_length,
                               void* data,
                               std::size_t length,
                               const ucp_am_recv_param_t* param);
  static ucs_status_t on_message(void* engine,
                                 const void* header,
                                 std::size_t header_length,
                                 void* data,
                                 std::size_t length,
                                 const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* outgoing);
  static void on_fetched(void* request, ucs_status_t status, std::size_t length, void* fetch);
  static void on_closed(void* request, ucs_status_t status, void* engine);
  static void on_endpoint_error(void* engine, ucp_ep_h endpoint, ucs_status_t status);
  static void on_connection_request(ucp_conn_request_h request, void* engine);

  Context context_;
  int wake_fd_;  ///< eventfd that interrupt() rings
  std::atomic<bool> interrupted_{false};
  ucp_listener_h listener_ = nullptr;
  std::uint64_t lanes_accepted_ = 0;
  std::vector<ucp_conn_request_h> requests_;

  std::unordered_map<ucp_ep_h, std::shared_ptr<Connection>> by_endpoint_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Connection>> by_peer_;
  std::vector<ucp_ep_h>
      early_failures_;  ///< endpoints that failed before they were in by_endpoint_
  std::vector<std::shared_ptr<Connection>> broken_;  ///< to be closed after progress
  std::vector<std::shared_ptr<Connection>> hellos_;
  std::deque<Greeting> greetings_;  ///< accepted connections that have to say hello, oldest first
  std::deque<Event> events_;

  std::list<Outgoing> outgoing_;
  std::list<Fetch> fetches_;
  int closing_ = 0;        ///< endpoints whose close has not completed
  int empty_wakeups_ = 0;  ///< sleeps in a row that ended with nothing to do
  UsualWait usual_wait_;
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t bytes_received_ = 0;
};

}  // namespace moiety::fabric::ucx
