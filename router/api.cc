#include "router/api.h"

#include <atomic>
#include <boost/json.hpp>

#include "router/endpoint.h"
#include "router/job_queue.h"

namespace moiety {
namespace json = boost::json;
namespace {

/// Bodies up to this size have threads of their own, so that they never wait for larger ones.
constexpr std::size_t kSmallBodyBytes = 64u << 10;
constexpr std::size_t kSmallThreads = 2;
constexpr std::size_t kLargeThreads = 1;
// Bodies of requests that wait for a thread.
constexpr std::size_t kMaxSmallWaitingBytes = 64u << 20;
constexpr std::size_t kMaxLargeWaitingBytes = 192u << 20;

http::Response json_response(const json::value& body) {
  return {200, "application/json", json::serialize(body) + "\n", {}};
}

}  // namespace

class Api::Routes {
 public:
  Routes(Engine& engine, const Tokenizer& tokenizer, RouterMetrics& metrics, ApiOptions options)
      : options_(std::move(options)),
        context_{engine, tokenizer, metrics, options_},
        small_jobs_(kSmallThreads, kMaxSmallWaitingBytes),
        large_jobs_(kLargeThreads, kMaxLargeWaitingBytes) {}

  void handle(http::Request request, std::shared_ptr<http::Responder> responder) {
    static constexpr std::string_view kModels = "/v1/models";
    const std::string& path = request.path;
    if (path == "/v1/completions") {
      return post(std::move(request), std::move(responder), post_completions);
    }
    if (path == "/v1/chat/completions") {
      return post(std::move(request), std::move(responder), post_chat_completions);
    }
    const bool is_models =
        path == kModels || (path.starts_with(kModels) && path[kModels.size()] == '/');
    const bool known = path == "/health" || path == "/ready" || path == "/metrics" || is_models;
    if (!known) {
      return responder->respond(
          error_response(404, "there is no " + path + " here", "", "not_found"));
    }
    if (request.method != "GET" && request.method != "HEAD") {
      return wrong_method(request, *responder, "GET");
    }
    if (path == "/health") return responder->respond(json_response({{"status", "ok"}}));
    if (path == "/ready") return ready(*responder);
    if (path == "/metrics") {
      return responder->respond(
          {200,
           "text/plain; version=0.0.4; charset=utf-8",
           context_.metrics.scrape(context_.engine.load(), context_.engine.epoch()),
           {}});
    }
    models(path.substr(kModels.size()), *responder);
  }

 private:
  using Endpoint = void (*)(const ApiContext&, const PostRequest&);

  void post(http::Request request, std::shared_ptr<http::Responder> responder, Endpoint endpoint) {
    if (request.method != "POST") return wrong_method(request, *responder, "POST");
    const std::size_t bytes = request.body.size();
    PostRequest post{std::move(request.body), Clock::now() + options_.request_timeout, responder};
    auto client_left = std::make_shared<std::atomic<bool>>(false);
    responder->on_disconnect([client_left] { *client_left = true; });
    JobQueue& jobs = bytes <= kSmallBodyBytes ? small_jobs_ : large_jobs_;
    const bool queued =
        jobs.push(bytes, [this, endpoint, post = std::move(post), left = std::move(client_left)] {
          if (!*left) begin(post, endpoint);
        });
    if (queued) return;
    context_.metrics.on_refused(options_.served_name, "resource_exhausted");
    responder->respond(error_response(
        fail(ErrorCode::kResourceExhausted, "too many large requests at once: try again later")));
  }

  void begin(const PostRequest& post, Endpoint endpoint) {
    if (Clock::now() < post.deadline) return endpoint(context_, post);
    const Error late = fail(ErrorCode::kDeadlineExceeded,
                            "the request's deadline passed before it was read: too many requests "
                            "at once");
    context_.metrics.on_refused(options_.served_name, error_info(late.code).name);
    post.responder->respond(error_response(late));
  }

  static void wrong_method(const http::Request& request,
                           http::Responder& responder,
                           std::string allowed) {
    http::Response response = error_response(
        405, request.method + " is not allowed on " + request.path + ": use " + allowed, "",
        "method_not_allowed");
    response.headers["Allow"] = std::move(allowed);
    responder.respond(std::move(response));
  }

  void ready(http::Responder& responder) {
    if (context_.engine.epoch().value == 0) {
      return responder.respond(error_response(503, "no experts are loaded yet", "", "unavailable"));
    }
    responder.respond(json_response({{"status", "ready"}}));
  }

  void models(std::string_view rest, http::Responder& responder) {
    json::array list;
    for (const Engine::DeploymentInfo& info : context_.engine.deployments()) {
      if (info.draining) continue;
      list.push_back(
          json::object{{"id", served_as(options_.served_name, info.name)},
                       {"object", "model"},
                       {"created", started_},
                       {"owned_by", "moiety"},
                       {"max_model_len", context_.engine.model().architecture().max_positions}});
    }
    if (rest.empty() || rest == "/") {
      return responder.respond(
          json_response(json::object{{"object", "list"}, {"data", std::move(list)}}));
    }
    for (const json::value& model : list) {
      if (rest.substr(1) == std::string_view(model.at("id").as_string())) {
        return responder.respond(json_response(model));
      }
    }
    responder.respond(model_not_found(context_, std::string(rest.substr(1))));
  }

  const ApiOptions options_;
  const ApiContext context_;
  const std::int64_t started_ = std::chrono::duration_cast<std::chrono::seconds>(
                                    std::chrono::system_clock::now().time_since_epoch())
                                    .count();
  JobQueue small_jobs_;  // last: the threads of these use all of the above
  JobQueue large_jobs_;
};

Api::Api(Engine& engine, const Tokenizer& tokenizer, RouterMetrics& metrics, ApiOptions options)
    : routes_(std::make_unique<Routes>(engine, tokenizer, metrics, std::move(options))) {}

Api::~Api() = default;

http::Handler Api::handler() {
  return
      [routes = routes_.get()](http::Request request, std::shared_ptr<http::Responder> responder) {
        routes->handle(std::move(request), std::move(responder));
      };
}

}  // namespace moiety
