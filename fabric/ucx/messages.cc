#include <fmt/format.h>

#include <cstring>
#include <new>

#include "common/log.h"
#include "fabric/protocol.h"
#include "fabric/ucx/engine.h"

// The part of Engine that talks in active messages: sending, the callbacks of UCX, and order.
namespace moiety::fabric::ucx {
namespace {

/// How far ahead of the next message another one may arrive. A peer of ours stays far below.
constexpr std::uint64_t kSequenceWindow = 1 << 16;

}  // namespace

Result<void> Engine::set_handlers() {
  const std::pair<unsigned, ucp_am_recv_callback_t> handlers[] = {
      {kHelloId, &Engine::on_hello}, {kMessageId, &Engine::on_message}};
  for (const auto& [id, callback] : handlers) {
    ucp_am_handler_param_t param = {};
    param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    param.id = id;
    param.flags = UCP_AM_FLAG_WHOLE_MSG;
    param.cb = callback;
    param.arg = this;
    if (const auto status = ucp_worker_set_am_recv_handler(context_.worker(), &param);
        status != UCS_OK) {
      return ucx_error(ErrorCode::kInternal, "UCX active message handler", status);
    }
  }
  return {};
}

void Engine::send_hello(const std::shared_ptr<Connection>& connection,
                        std::vector<std::byte> bytes) {
  post(kHelloId, connection, WireHeader{}, std::move(bytes));
}

bool Engine::send(const std::shared_ptr<Connection>& connection,
                  const Header& header,
                  std::vector<std::byte> payload) {
  bytes_sent_ += payload.size();
  post(kMessageId, connection, WireHeader{header, connection->next_to_send++}, std::move(payload));
  return !connection->broken;
}

void Engine::post(unsigned am_id,
                  const std::shared_ptr<Connection>& connection,
                  const WireHeader& header,
                  std::vector<std::byte> payload) {
  outgoing_.push_front({this, connection, header, std::move(payload), {}});
  Outgoing& message = outgoing_.front();
  message.self = outgoing_.begin();
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_AM_SEND_FLAG_REPLY;  // names the endpoint at the receiver
  if (am_id == kHelloId) param.flags |= UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &Engine::on_sent;
  param.user_data = &message;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(connection->endpoint, am_id, am_id == kHelloId ? nullptr : &message.header,
                      am_id == kHelloId ? 0 : sizeof message.header, message.payload.data(),
                      message.payload.size(), &param);
  if (UCS_PTR_IS_PTR(request)) return;  // on_sent frees the message
  outgoing_.erase(message.self);
  if (UCS_PTR_IS_ERR(request)) {
    mark_broken(connection,
                fmt::format("a send failed: {}", ucs_status_string(UCS_PTR_STATUS(request))));
  }
}

void Engine::on_sent(void* request, ucs_status_t status, void* outgoing) {
  auto& message = *static_cast<Outgoing*>(outgoing);
  Engine& engine = *message.engine;
  if (const auto connection = message.connection.lock();
      status != UCS_OK && connection != nullptr) {
    engine.mark_broken(connection, fmt::format("a send failed: {}", ucs_status_string(status)));
  }
  engine.outgoing_.erase(message.self);
  ucp_request_free(request);
}

void Engine::on_closed(void* request, ucs_status_t /*status*/, void* engine) {
  --static_cast<Engine*>(engine)->closing_;
  ucp_request_free(request);
}

void Engine::on_endpoint_error(void* engine, ucp_ep_h endpoint, ucs_status_t status) {
  auto& self = *static_cast<Engine*>(engine);
  const auto it = self.by_endpoint_.find(endpoint);
  if (it == self.by_endpoint_.end()) {
    self.early_failures_.push_back(endpoint);
  } else {
    self.mark_broken(it->second, ucs_status_string(status));
  }
}

void Engine::on_connection_request(ucp_conn_request_h request, void* engine) {
  static_cast<Engine*>(engine)->requests_.push_back(request);
}

std::shared_ptr<Connection> Engine::find_endpoint(const ucp_am_recv_param_t& param) const {
  if ((param.recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return nullptr;
  const auto it = by_endpoint_.find(param.reply_ep);
  return it == by_endpoint_.end() || it->second->broken ? nullptr : it->second;
}

ucs_status_t Engine::on_hello(void* engine,
                              const void* /*header*/,
                              std::size_t /*header_length*/,
                              void* data,
                              std::size_t length,
                              const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<Engine*>(engine);
  const auto connection = self.find_endpoint(*param);
  if (connection == nullptr) return UCS_OK;
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  if (rendezvous || length == 0 || length > kMaxHelloBytes || !connection->hello.empty()) {
    log_warning("ucx connection {}: a hello that is not one; closing it", connection->peer);
    self.mark_broken(connection, "malformed hello");
    return UCS_OK;
  }
  const auto* bytes = static_cast<const std::byte*>(data);
  connection->hello.assign(bytes, bytes + length);
  self.hellos_.push_back(connection);
  return UCS_OK;
}

ucs_status_t Engine::on_message(void* engine,
                                const void* header,
                                std::size_t header_length,
                                void* data,
                                std::size_t length,
                                const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<Engine*>(engine);
  const auto connection = self.find_endpoint(*param);
  if (connection == nullptr) return UCS_OK;  // late, or from nobody
  if (const std::string flaw =
          self.message_arrived(connection, {static_cast<const std::byte*>(header), header_length},
                               data, length, (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
      !flaw.empty()) {
    log_warning("ucx connection {}: {}; closing it", connection->peer, flaw);
    self.mark_broken(connection, flaw);
  }
  return UCS_OK;
}

std::string Engine::message_arrived(const std::shared_ptr<Connection>& connection,
                                    std::span<const std::byte> header,
                                    void* data,
                                    std::size_t length,
                                    bool rendezvous) {
  if (connection->state != Connection::State::kOpen) return "a message before the hello";
  WireHeader wire;
  if (header.size() != sizeof wire) return fmt::format("a header of {} bytes", header.size());
  std::memcpy(&wire, header.data(), sizeof wire);
  if (!valid_header(wire.header)) return "a header of another kind";
  if (length > kMaxPayloadBytes) return fmt::format("a payload of {} bytes", length);
  if (wire.sequence - connection->next_to_deliver >= kSequenceWindow)
    return "a sequence number out of turn";
  const auto [it, added] = connection->arrivals.try_emplace(wire.sequence);
  if (!added) return "a sequence number twice";
  Connection::Arrival& arrival = it->second;
  arrival.event.type = Event::Type::kMessage;
  arrival.event.peer = connection->peer;
  arrival.event.header = wire.header;
  try {
    if (rendezvous) {
      fetch(connection, wire.sequence, data, std::vector<std::byte>(length));
      return {};
    }
    const auto* bytes = static_cast<const std::byte*>(data);
    arrival.event.payload.assign(bytes, bytes + length);
  } catch (const std::bad_alloc&) {
    return fmt::format("no memory for a payload of {} bytes", length);
  }
  arrival.complete = true;
  deliver_complete(*connection);
  return {};
}

void Engine::fetch(const std::shared_ptr<Connection>& connection,
                   std::uint64_t sequence,
                   void* descriptor,
                   std::vector<std::byte> buffer) {
  fetches_.push_front({this, connection, sequence, std::move(buffer), {}});
  Fetch& fetch = fetches_.front();
  fetch.self = fetches_.begin();
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = &Engine::on_fetched;
  param.user_data = &fetch;
  const ucs_status_ptr_t request = ucp_am_recv_data_nbx(
      context_.worker(), descriptor, fetch.buffer.data(), fetch.buffer.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) fetched(fetch, UCS_PTR_STATUS(request));
}

void Engine::on_fetched(void* request, ucs_status_t status, std::size_t /*length*/, void* fetch) {
  auto& done = *static_cast<Fetch*>(fetch);
  done.engine->fetched(done, status);
  ucp_request_free(request);
}

void Engine::fetched(Fetch& fetch, ucs_status_t status) {
  const auto connection = fetch.connection.lock();
  if (connection != nullptr && !connection->broken) {
    if (status == UCS_OK) {
      Connection::Arrival& arrival = connection->arrivals.at(fetch.sequence);
      arrival.event.payload = std::move(fetch.buffer);
      arrival.complete = true;
      deliver_complete(*connection);
    } else {
      mark_broken(connection,
                  fmt::format("a payload did not arrive: {}", ucs_status_string(status)));
    }
  }
  fetches_.erase(fetch.self);
}

void Engine::deliver_complete(Connection& connection) {
  auto& arrivals = connection.arrivals;
  while (!arrivals.empty() && arrivals.begin()->first == connection.next_to_deliver &&
         arrivals.begin()->second.complete) {
    events_.push_back(std::move(arrivals.begin()->second.event));
    arrivals.erase(arrivals.begin());
    ++connection.next_to_deliver;
  }
}

}  // namespace moiety::fabric::ucx
