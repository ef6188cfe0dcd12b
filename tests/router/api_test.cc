#include "router/api.h"

#include <gmock/gmock.h>

#include <boost/json.hpp>
#include <future>

#include "tests/router/engine_support.h"

namespace moiety {
namespace {

namespace json = boost::json;
using testing::EngineTest;
using ::testing::HasSubstr;

/// What one request is answered. respond() blocks its thread until `release`, if there is one.
class Client {
 public:
  explicit Client(std::shared_future<void> release = {}) : release_(std::move(release)) {}

  std::shared_ptr<http::Responder> responder() { return std::make_shared<Wire>(state_, release_); }
  void wait_begun() {
    EXPECT_TRUE(state_->wait([&] { return state_->begun; }));
  }
  void wait_dropped() {
    EXPECT_TRUE(state_->wait([&] { return state_->dropped; }));
  }
  bool answered() {
    const std::lock_guard lock(state_->mutex);
    return state_->response.has_value();
  }
  json::value wait_response(int status) {
    EXPECT_TRUE(state_->wait([&] { return state_->response.has_value(); }));
    const std::lock_guard lock(state_->mutex);
    if (!state_->response) return nullptr;
    EXPECT_EQ(state_->response->status, status) << state_->response->body;
    return json::parse(state_->response->body);
  }
  void leave() {
    std::unique_lock lock(state_->mutex);
    const auto callback = state_->on_disconnect;
    lock.unlock();
    ASSERT_TRUE(callback);
    callback();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable wake;
    bool begun = false, dropped = false;
    std::optional<http::Response> response;
    std::function<void()> on_disconnect;

    template <class Done>
    bool wait(Done done) {
      std::unique_lock lock(mutex);
      return wake.wait_for(lock, std::chrono::seconds(60), done);
    }
    void set(const std::function<void()>& change) {
      const std::lock_guard lock(mutex);
      change();
      wake.notify_all();
    }
  };
  class Wire final : public http::Responder {
   public:
    Wire(std::shared_ptr<State> state, std::shared_future<void> release)
        : state_(std::move(state)), release_(std::move(release)) {}
    ~Wire() override {
      state_->set([&] { state_->dropped = true; });
    }
    void respond(http::Response response) override {
      state_->set([&] { state_->begun = true; });
      if (release_.valid()) release_.wait();
      state_->set([&] { state_->response = std::move(response); });
    }
    void start_stream(int, std::string, std::map<std::string, std::string>) override {}
    void write(std::string) override {}
    void end() override {}
    std::size_t unsent_bytes() const override { return 0; }
    void on_disconnect(std::function<void()> callback) override {
      state_->set([&] { state_->on_disconnect = std::move(callback); });
    }

   private:
    const std::shared_ptr<State> state_;
    const std::shared_future<void> release_;
  };

  const std::shared_ptr<State> state_ = std::make_shared<State>();
  const std::shared_future<void> release_;
};

class ApiTest : public EngineTest {
 protected:
  void start(ApiOptions options = {}, const EngineOptions& engine_options = {}) {
    options.served_name = "m";
    metrics_.emplace(embedded_.arch(), "m", false);
    engine_ = make_engine(engine_options, &*metrics_);
    api_.emplace(*engine_, tokenizer(), *metrics_, std::move(options));
  }
  void post(Client& client, std::string body) {
    ask_for(client, "POST", "/v1/completions", std::move(body));
  }
  void ask_for(Client& client, std::string method, std::string path, std::string body = "") {
    http::Request request;
    request.method = std::move(method);
    request.path = std::move(path);
    request.body = std::move(body);
    api_->handler()(std::move(request), client.responder());
  }
  static const Tokenizer& tokenizer() {
    static const Tokenizer loaded =
        std::move(Tokenizer::load(testing::source_path("models/moiety-tiny-emo"))).value();
    return loaded;
  }
  static std::string ask(std::string_view more) {
    std::string body = R"({"model": "m", "prompt": [3, 4], "max_tokens": 1)";
    body += more;
    return body + "}";
  }
  /// Whose thread is held by the client of its refusal.
  static std::string broken(std::size_t bytes) { return std::string(bytes, '['); }

  std::promise<void> release_;
  const std::shared_future<void> released_{release_.get_future()};
  std::optional<RouterMetrics> metrics_;
  std::unique_ptr<Engine> engine_;
  std::optional<Api> api_;
};

TEST_F(ApiTest, ASmallRequestCompletesWhileLargeOnesAreRead) {
  start();
  Client large[3] = {Client(released_), Client(released_), Client(released_)};
  for (Client& client : large) post(client, broken(100'000));
  large[0].wait_begun();
  Client small;
  post(small, ask(""));
  EXPECT_EQ(small.wait_response(200).at("usage").at("completion_tokens"), 1);
  for (Client& client : large) EXPECT_FALSE(client.answered());
  release_.set_value();
  for (Client& client : large) client.wait_response(400);
}

TEST_F(ApiTest, WhoLeftBeforeItsTurnIsNotReadAnyMore) {
  start();
  Client first(released_), left, last;
  post(first, broken(100'000));
  first.wait_begun();
  post(left, broken(100'000));
  post(last, broken(100'000));
  left.leave();
  release_.set_value();
  last.wait_response(400);
  left.wait_dropped();
  EXPECT_FALSE(left.answered());
}

TEST_F(ApiTest, WhoseDeadlinePassedBeforeItsTurnIsTold) {
  ApiOptions options;
  options.request_timeout = std::chrono::seconds(0);
  start(std::move(options));
  Client client;
  post(client, ask(""));
  EXPECT_EQ(client.wait_response(504).at("error").at("code"), "deadline_exceeded");
}

TEST_F(ApiTest, MoreChoicesThanAreEverTakenAreRefusedForGood) {
  EngineOptions options;
  options.max_num_seqs = 4;
  options.max_queue = 2;
  start({}, options);
  Client fitting, more;
  post(fitting, ask(R"(, "n": 6)"));
  EXPECT_EQ(fitting.wait_response(200).at("choices").as_array().size(), 6u);
  post(more, ask(R"(, "n": 7)"));
  const json::value error = more.wait_response(400).at("error");
  EXPECT_EQ(error.at("param"), "n");
  EXPECT_THAT(std::string(error.at("message").as_string()),
              HasSubstr("7 choices, and this router takes 6 at once"));
}

TEST_F(ApiTest, ErrorsAreJsonWhateverPathTheyQuote) {
  start();
  for (const char* path : {"/v1/models/\xff", "/caf\xc3"}) {
    Client client;
    ask_for(client, "GET", path);
    client.wait_response(404);  // throws at broken UTF-8
  }
}

TEST_F(ApiTest, APromptBeyondTheContextIsRefusedWithItsSize) {
  start();
  Client client;
  post(client, R"({"model": "m", "prompt": ")" + std::string(1 << 20, ' ') + R"("})");
  const json::value error = client.wait_response(400).at("error");
  EXPECT_EQ(error.at("param"), "prompt");
  EXPECT_EQ(error.at("code"), "context_length_exceeded");
  EXPECT_THAT(std::string(error.at("message").as_string()),
              HasSubstr("more than " + std::to_string(embedded_.arch().max_positions) + " tokens"));
}

}  // namespace
}  // namespace moiety
