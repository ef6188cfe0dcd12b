#include "proto/convert.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "proto/moiety.pb.h"

namespace moiety::proto {
namespace {

using testing::HasSubstr;

bool same(const Error& a, const Error& b) { return a.code == b.code && a.message == b.message; }
bool same(const Refuse& a, const Refuse& b) { return same(a.error, b.error); }
bool same(const ExpertsReady& a, const ExpertsReady& b) {
  return a.epoch == b.epoch && a.bytes_read == b.bytes_read &&
         a.error.has_value() == b.error.has_value() && (!a.error || same(*a.error, *b.error));
}
template <class T>
bool same(const T& a, const T& b) {
  return a == b;
}
bool same(const ControlMessage& a, const ControlMessage& b) {
  if (a.index() != b.index()) return false;
  return std::visit([&](const auto& m) { return same(m, std::get<std::decay_t<decltype(m)>>(b)); },
                    a);
}

/// Random but valid messages; text holds any byte, numbers their whole range.
class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}

  std::uint64_t number() { return random_() >> (random_() % 64); }
  std::size_t below(std::size_t limit) { return random_() % limit; }
  bool coin() { return below(2) == 0; }
  std::string text(std::size_t max_bytes = 40) {
    std::string out(below(max_bytes + 1), '\0');
    for (char& c : out) c = static_cast<char>(random_());
    return out;
  }
  Error error() {
    return {static_cast<ErrorCode>(below(static_cast<std::size_t>(ErrorCode::kInternal) + 1)),
            text()};
  }
  std::vector<std::int32_t> ids(std::size_t limit) {
    std::vector<std::int32_t> out;
    for (std::size_t id = 0; id < limit; ++id) {
      if (coin()) out.push_back(static_cast<std::int32_t>(id));
    }
    return out;
  }
  std::vector<ExpertId> experts() {
    std::vector<ExpertId> out;
    for (std::int32_t layer : ids(8)) {
      for (std::int32_t expert : ids(20)) out.push_back({layer, expert});
    }
    if (coin()) out.push_back({kMaxLayers - 1, kMaxExpertsPerLayer - 1});
    return out;
  }
  std::vector<WorkerId> workers() {
    std::set<WorkerId> out;
    for (std::size_t i = below(4); i > 0; --i) out.insert({static_cast<std::uint32_t>(number())});
    return {out.begin(), out.end()};
  }
  EpochView view() {
    EpochView view;
    view.placement.epoch = {number()};
    view.placement.owners.resize(below(6));
    for (auto& layer : view.placement.owners) {
      layer.resize(below(30));  // 0: a dense layer
      for (auto& owners : layer) owners = workers();
    }
    for (std::size_t layer = 0; layer < view.placement.owners.size(); ++layer) {
      for (const std::int32_t expert : ids(view.placement.owners[layer].size()))
        view.placement.router_experts.push_back({static_cast<std::int32_t>(layer), expert});
    }
    for (WorkerId worker : workers()) view.workers.push_back({worker, number(), text(200)});
    std::set<std::string> names{""};
    for (std::size_t i = below(4); i > 0; --i) names.insert(text());
    for (const std::string& name : names) {
      Deployment& deployment = view.deployments.emplace_back();
      deployment.name = name;
      deployment.draining = coin();
      deployment.on_missing = static_cast<MissingPolicy>(below(3));
      deployment.kept.full = coin();
      for (const auto& layer : view.placement.owners) {
        deployment.kept.layers.push_back(ids(layer.size()));
      }
    }
    return view;
  }
  std::chrono::milliseconds duration() { return std::chrono::milliseconds(below(100'000)); }

  ControlMessage message(std::size_t index) {
    switch (index) {
      case 0: {
        Hello hello;
        hello.protocol_version = static_cast<std::uint32_t>(number());
        hello.role = static_cast<Role>(1 + below(3));
        if (coin()) hello.id = static_cast<std::uint32_t>(number());
        hello.incarnation = number();
        hello.token = text();
        hello.pid = static_cast<std::int64_t>(number() >> 1);
        hello.build = text();
        hello.lane_address = text(3000);
        hello.http_address = text();
        hello.fingerprint = text(64);
        hello.capacity_bytes = number();
        hello.resident = experts();
        hello.epoch = {number()};
        return hello;
      }
      case 1:
        return Welcome{text(), static_cast<std::uint32_t>(number()), duration(), duration()};
      case 2:
        return Refuse{error()};
      case 3:
        return WorkerHeartbeat{{number(), number(), number(), number(), number()}};
      case 4:
        return LoadExperts{{number()}, experts()};
      case 5:
        return ExpertsReady{{number()}, number(), coin() ? std::optional(error()) : std::nullopt};
      case 6:
        return DropExperts{{number()}, experts()};
      case 7:
        return Shutdown{text()};
      case 8:
        return PublishEpoch{view()};
      case 9:
        return EpochActive{{number()}, workers(), coin() ? text() : ""};
      case 10: {
        RouterStats stats{Epoch{number()}, number(), number(), number(), {},
                          number(),        number(), number()};
        for (std::size_t i = below(4); i > 0; --i) stats.running_per_deployment[text()] = number();
        return RouterHeartbeat{stats};
      }
      case 11:
        return WorkerSuspect{{static_cast<std::uint32_t>(number())}, number(), text()};
      default: {
        ExpertLoad load;
        load.tokens.resize(below(6));
        for (auto& layer : load.tokens) {
          layer.resize(below(30));  // 0: a dense layer
          for (std::uint64_t& tokens : layer) tokens = number();
        }
        return load;
      }
    }
  }

 private:
  std::mt19937_64 random_;
};

constexpr std::size_t kKinds = std::variant_size_v<ControlMessage>;

TEST(Convert, EveryMessageComesBackAsItWas) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Generator generator(seed);
    for (std::size_t kind = 0; kind < kKinds; ++kind) {
      const ControlMessage message = generator.message(kind);
      ASSERT_EQ(message.index(), kind);
      const auto payload = encode(message);
      ASSERT_TRUE(payload) << payload.error().message;
      const auto back = decode(*payload);
      ASSERT_TRUE(back) << back.error().message;
      EXPECT_TRUE(same(message, *back)) << "kind " << kind << ", seed " << seed;
    }
  }
}

TEST(Convert, DamagedBytesNeverYieldAnInvalidMessage) {
  std::size_t refused = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    Generator generator(seed);
    std::string payload = *encode(generator.message(generator.below(kKinds)));
    for (std::size_t i = 1 + generator.below(4); i > 0 && !payload.empty(); --i) {
      if (generator.coin()) {
        payload[generator.below(payload.size())] = static_cast<char>(generator.number());
      } else {
        payload.resize(generator.below(payload.size() + 1));
      }
    }
    const auto message = decode(payload);
    if (message) {
      EXPECT_TRUE(encode(*message)) << "seed " << seed;
    } else {
      EXPECT_EQ(message.error().code, ErrorCode::kDataLoss);
      ++refused;
    }
  }
  EXPECT_GT(refused, 500u);
}

TEST(Convert, RefusesGarbageAndUnknownMessages) {
  for (std::string_view bytes :
       {std::string_view(""), std::string_view("garbage"), std::string_view("\xff\xff\xff\xff\xff"),
        std::string_view("\x9a\x06\x00", 3)}) {  // field 99, empty
    const auto message = decode(bytes);
    ASSERT_FALSE(message);
    EXPECT_EQ(message.error().code, ErrorCode::kDataLoss);
  }
}

TEST(Convert, RefusesToSendWhatIsNotValid) {
  const auto expect_refused = [](const ControlMessage& message, std::string_view why) {
    const auto payload = encode(message);
    ASSERT_FALSE(payload) << why;
    EXPECT_EQ(payload.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(payload.error().message, HasSubstr(why));
  };
  expect_refused(LoadExperts{{1}, {{0, 2}, {0, 1}}},
                 "LoadExperts: experts: not in ascending order");
  expect_refused(LoadExperts{{1}, {{0, 1}, {0, 1}}}, "appears twice");
  expect_refused(LoadExperts{{1}, {{-1, 1}}}, "layer");
  expect_refused(DropExperts{{1}, {{0, kMaxExpertsPerLayer}}}, "DropExperts: keep");
  expect_refused(EpochActive{{1}, {{2}, {2}}}, "lost_workers");
  expect_refused(Welcome{"", 0, std::chrono::milliseconds(-1), {}}, "lease_ttl");
  ExpertLoad load;
  load.tokens.resize(kMaxLayers + 1);
  expect_refused(load, "ExpertLoad: layers");
  load.tokens = {std::vector<std::uint64_t>(kMaxExpertsPerLayer + 1)};
  expect_refused(load, "experts of a layer");
  load.tokens.assign(kMaxExperts / kMaxExpertsPerLayer,
                     std::vector<std::uint64_t>(kMaxExpertsPerLayer));
  ASSERT_TRUE(encode(load));
  load.tokens.push_back({1});
  expect_refused(load, "ExpertLoad: experts");
  Hello hello;
  hello.role = static_cast<Role>(9);
  expect_refused(hello, "role");
  hello = {};
  hello.token = std::string(kMaxNameBytes + 1, 't');
  expect_refused(hello, "token");
  hello = {};
  hello.resident = {{0, 2}, {0, 1}};
  expect_refused(hello, "resident");

  PublishEpoch publish;
  publish.view.placement.owners = {{{{1}}, {{1}, {2}}}};
  publish.view.deployments = {{"a", {false, {{0, 1}}}}};
  ASSERT_TRUE(encode(publish));
  publish.view.deployments[0].kept.layers = {{0, 2}};
  expect_refused(publish, "keeps expert 2 of layer 0, which has 2");
  publish.view.deployments[0].kept.layers = {{0}, {0}};
  expect_refused(publish, "has 2 layers, the placement 1");
  publish.view.deployments = {{"a", {false, {{0}}}}, {"a", {false, {{1}}}}};
  expect_refused(publish, "'a' appears twice");
  publish.view.deployments.clear();
  publish.view.workers = {{{1}, 1, "x"}, {{1}, 2, "y"}};
  expect_refused(publish, "1 appears twice");
  publish.view.workers.clear();
  publish.view.placement.owners[0][1] = {{2}, {1}};
  expect_refused(publish, "placement owners");
}

TEST(Convert, RefusesAPeerThatLies) {
  const auto expect_refused = [](const wire::Control& control, std::string_view why) {
    const auto message = decode(control.SerializeAsString());
    ASSERT_FALSE(message) << why;
    EXPECT_EQ(message.error().code, ErrorCode::kDataLoss);
    EXPECT_THAT(message.error().message, HasSubstr(why));
  };
  wire::Control control;
  control.mutable_hello()->set_role(static_cast<wire::Hello::Role>(9));
  expect_refused(control, "role");
  control.mutable_hello()->set_role(static_cast<wire::Hello::Role>(1 + 256));
  expect_refused(control, "role");
  control.mutable_hello()->set_role(wire::Hello::ROLE_WORKER);
  control.mutable_hello()->set_pid(-1);
  expect_refused(control, "pid");
  control.mutable_welcome()->set_lease_ttl_ms(~std::uint64_t{0});
  expect_refused(control, "duration");
  control.mutable_refuse();
  expect_refused(control, "code");
  control.mutable_shutdown()->set_reason(std::string(kMaxTextBytes + 1, 'r'));
  expect_refused(control, "too long");
  control.mutable_load_experts()->add_experts()->add_experts(-5);
  expect_refused(control, "-5");

  auto* deployment = control.mutable_publish_epoch()->add_deployments();
  deployment->set_on_missing(static_cast<wire::Deployment::MissingPolicy>(9));
  expect_refused(control, "on_missing");

  auto* layer = control.mutable_publish_epoch()->add_placement();
  layer->add_num_owners(2);
  layer->add_owners(1);
  expect_refused(control, "more owners than it lists");
  layer->set_num_owners(0, ~0u);
  expect_refused(control, "more owners than it lists");
  layer->set_num_owners(0, 0);
  expect_refused(control, "owners of no expert");
  layer->clear_owners();
  for (std::size_t i = 0; i <= kMaxExperts; ++i) layer->add_num_owners(0);
  expect_refused(control, "too many experts");
  for (std::size_t i = 0; i <= kMaxLayers; ++i) control.mutable_expert_load()->add_layers();
  expect_refused(control, "layers");
}

TEST(Convert, AnUnknownErrorCodeBecomesInternal) {
  wire::Control control;
  control.mutable_refuse()->mutable_error()->set_code("code_of_the_future");
  control.mutable_refuse()->mutable_error()->set_message("text");
  const auto message = decode(control.SerializeAsString());
  ASSERT_TRUE(message) << message.error().message;
  EXPECT_TRUE(same(std::get<Refuse>(*message).error, Error{ErrorCode::kInternal, "text"}));
}

TEST(Convert, CutsLongTexts) {
  const auto payload = encode(Shutdown{std::string(10 * kMaxTextBytes, 'r')});
  ASSERT_TRUE(payload);
  EXPECT_EQ(std::get<Shutdown>(*decode(*payload)).reason, std::string(kMaxTextBytes, 'r'));
}

TEST(Convert, ALargeFleetsEpochIsCompact) {
  PublishEpoch publish;  // 60 layers of 256 experts on 256 workers, 8 deployments
  auto& view = publish.view;
  view.placement.owners.assign(60, {});
  for (auto& layer : view.placement.owners) {
    for (std::uint32_t expert = 0; expert < 256; ++expert) layer.push_back({{expert}});
  }
  std::vector<std::int32_t> half;
  for (std::int32_t expert = 0; expert < 256; expert += 2) half.push_back(expert);
  for (int i = 0; i < 8; ++i) {
    view.deployments.push_back(
        {fmt::format("d{}", i), {false, std::vector<std::vector<std::int32_t>>(60, half)}});
  }
  const auto payload = encode(publish);
  ASSERT_TRUE(payload);
  EXPECT_LT(payload->size(), 200'000u);
  EXPECT_TRUE(same(*decode(*payload), publish));
}

TEST(Convert, TheLargestLoadFits) {
  ExpertLoad load;
  load.tokens.assign(kMaxExperts / kMaxExpertsPerLayer,
                     std::vector<std::uint64_t>(kMaxExpertsPerLayer, ~std::uint64_t{0}));
  const auto payload = encode(load);
  ASSERT_TRUE(payload) << payload.error().message;
  EXPECT_LT(payload->size(), kMaxMessageBytes);
  EXPECT_TRUE(same(*decode(*payload), load));
}

}  // namespace
}  // namespace moiety::proto
