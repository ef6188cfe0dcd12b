#include "worker/lane_loop.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "fabric/loopback/loopback.h"
#include "tests/fabric/echo.h"
#include "worker/merge.h"

namespace moiety {
namespace {

using fabric::connect_now;
using fabric::Event;
using fabric::generous;
using fabric::Header;

constexpr std::uint64_t kWorker = 3;
constexpr std::uint64_t kIncarnation = 9;
constexpr std::uint64_t kRouters[] = {5, 6, 7};

/// Rows of different routers differ, and so do the experts they want.
Dispatch some_dispatch(std::uint64_t router,
                       std::size_t num_rows,
                       std::int32_t hidden_size,
                       CombineMode combine,
                       std::int32_t num_experts,
                       std::int32_t top_k) {
  Dispatch dispatch;
  dispatch.combine = combine;
  dispatch.hidden_size = hidden_size;
  dispatch.dtype = DType::kBF16;
  dispatch.pairs.row_offsets.push_back(0);
  for (std::size_t row = 0; row < num_rows; ++row) {
    for (std::int32_t slot = 0; slot < top_k; ++slot) {
      const auto expert = static_cast<std::int32_t>(router * 7 + row * 3) + slot * 5;
      dispatch.pairs.experts.push_back(expert % num_experts);
      dispatch.pairs.weights.push_back(0.1f + 0.05f * static_cast<float>(slot));
    }
    dispatch.pairs.row_offsets.push_back(static_cast<std::uint32_t>(dispatch.pairs.experts.size()));
    for (std::int32_t i = 0; i < hidden_size; ++i) {
      const double value = std::sin(static_cast<double>(router) + 0.37 * static_cast<double>(row) +
                                    0.011 * static_cast<double>(i));
      dispatch.rows.push_back(bf16_to_float(float_to_bf16(static_cast<float>(value))));
    }
  }
  return dispatch;
}

class LaneLoopTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = Checkpoint::open(std::string(MOIETY_SOURCE_DIR) + "/models/moiety-tiny-emo");
    ASSERT_TRUE(opened) << opened.error().message;
    checkpoint_ = std::make_unique<Checkpoint>(std::move(*opened));
    store_ = std::make_unique<ExpertStore>(*checkpoint_, DType::kBF16);
    num_experts_ = checkpoint_->architecture().layers[kLayer].moe.num_routed - 1;
    std::vector<ExpertId> held;
    for (std::int32_t expert = 0; expert < num_experts_; ++expert)
      held.push_back({static_cast<std::int32_t>(kLayer), expert});
    const auto loaded = store_->load(held);
    ASSERT_TRUE(loaded) << loaded.error().message;
    const auto variant = kernels::choose_variant("auto");
    ASSERT_TRUE(variant);
    runner_ = std::make_unique<ExpertRunner>(*variant, pool_);
    port_ = network_.make_port({kWorker, kIncarnation, fabric::kToken});
    start();
    for (const std::uint64_t router : kRouters) {
      lanes_[router] = network_.make_router_lane(fabric::router_identity(router));
      const auto connected =
          connect_now(*lanes_[router], port_->address(), kWorker, kIncarnation, generous());
      ASSERT_TRUE(connected) << connected.error().message;
    }
  }
  void TearDown() override { pause(); }

  void start() {
    loop_ =
        std::make_unique<LaneLoop>(*port_, *store_, *runner_, hidden_size(), kWorker, kIncarnation);
    thread_ = std::thread([this] { loop_->run(); });
  }
  /// While paused, what routers send waits in the port. Counters start again.
  void pause() {
    if (!thread_.joinable()) return;
    loop_->stop();
    thread_.join();
    loop_.reset();
  }

  std::int32_t hidden_size() const { return checkpoint_->architecture().hidden_size; }
  Dispatch dispatch(std::uint64_t router, std::size_t rows, CombineMode combine) const {
    return some_dispatch(router, rows, hidden_size(), combine, num_experts_, 4);
  }
  Header header(std::uint64_t router, std::uint64_t step, std::uint32_t layer = kLayer) const {
    Header header = fabric::dispatch_header(router, step, kIncarnation);
    header.layer = layer;
    return header;
  }
  void send(std::uint64_t router, const Header& header, const Dispatch& dispatch) {
    ASSERT_TRUE(lanes_[router]->send(kWorker, header, encode_dispatch(dispatch)));
  }
  Event reply(std::uint64_t router) {
    Event event = lanes_[router]->wait(generous());
    EXPECT_EQ(event.type, Event::Type::kMessage);
    return event;
  }
  /// What a runner computes for the dispatch alone.
  std::vector<std::byte> alone(const Dispatch& dispatch) {
    ThreadPool pool(1);
    ExpertRunner reference(*kernels::choose_variant("auto"), pool);
    std::vector<float> rows(reply_values(dispatch));
    const auto computed = dispatch.combine == CombineMode::kPerExpert
                              ? reference.run_pairs(*store_, kLayer, hidden_size(), dispatch.rows,
                                                    dispatch.pairs, rows)
                              : reference.run_rows(*store_, kLayer, hidden_size(), dispatch.rows,
                                                   dispatch.pairs, rows);
    EXPECT_TRUE(computed);
    return encode_rows(rows);
  }

  static constexpr std::size_t kLayer = 1;
  ThreadPool pool_{2};
  fabric::LoopbackNetwork network_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<ExpertRunner> runner_;
  std::int32_t num_experts_ = 0;
  std::unique_ptr<fabric::WorkerPort> port_;
  std::unique_ptr<LaneLoop> loop_;
  std::thread thread_;
  std::map<std::uint64_t, std::unique_ptr<fabric::RouterLane>> lanes_;
};

// Dispatches of three routers wait together: one run, the bits of each alone, each answered under
// its own header.
TEST_F(LaneLoopTest, MergesWhatWaitsAndKeepsTheBits) {
  for (const CombineMode combine : {CombineMode::kPerWorker, CombineMode::kPerExpert}) {
    pause();
    std::map<std::uint64_t, std::vector<std::byte>> expected;
    std::uint64_t pairs = 0;
    for (const std::uint64_t router : kRouters) {
      const Dispatch each = dispatch(router, router - 3, combine);
      expected[router] = alone(each);
      pairs += each.pairs.num_pairs();
      send(router, header(router, 40 + router), each);
    }
    start();
    for (const std::uint64_t router : kRouters) {
      const Event event = reply(router);
      EXPECT_EQ(event.header.kind, fabric::Kind::kReply);
      EXPECT_EQ(event.header.sender, kWorker);
      EXPECT_TRUE(event.header.answers(header(router, 40 + router)));
      EXPECT_EQ(event.payload, expected[router]);
      EXPECT_LE(event.header.received_ns, event.header.started_ns);
      EXPECT_LE(event.header.started_ns, event.header.finished_ns);
      EXPECT_LE(event.header.finished_ns, event.header.sent_ns);
    }
    EXPECT_EQ(loop_->counters().batches, 1u);
    EXPECT_EQ(loop_->counters().merged, 3u);
    EXPECT_EQ(loop_->counters().dispatches, 3u);
    EXPECT_EQ(loop_->counters().pairs, pairs);
  }
}

TEST_F(LaneLoopTest, OtherLayersAndCombineModesAreBatchesOfTheirOwn) {
  pause();
  std::vector<ExpertId> other_layer;
  for (std::int32_t expert = 0; expert < num_experts_; ++expert) other_layer.push_back({2, expert});
  ASSERT_TRUE(store_->load(other_layer));
  send(5, header(5, 1, 2), dispatch(5, 2, CombineMode::kPerWorker));
  send(6, header(6, 1), dispatch(6, 2, CombineMode::kPerWorker));
  send(7, header(7, 1), dispatch(7, 2, CombineMode::kPerExpert));
  start();
  for (const std::uint64_t router : kRouters)
    EXPECT_EQ(reply(router).header.kind, fabric::Kind::kReply);
  EXPECT_EQ(loop_->counters().batches, 3u);
  EXPECT_EQ(loop_->counters().merged, 0u);
}

// One of those that wait names an expert that is not here: only that one is refused.
TEST_F(LaneLoopTest, OneBadDispatchDoesNotSpoilABatch) {
  pause();
  Dispatch bad = dispatch(6, 2, CombineMode::kPerWorker);
  bad.pairs.experts.back() = num_experts_;
  const Dispatch good = dispatch(5, 3, CombineMode::kPerWorker);
  const auto expected = alone(good);
  send(5, header(5, 1), good);
  send(6, header(6, 1), bad);
  send(7, header(7, 1), dispatch(7, 1, CombineMode::kPerWorker));
  start();
  EXPECT_EQ(reply(5).payload, expected);
  const Event refused = reply(6);
  EXPECT_EQ(refused.header.kind, fabric::Kind::kError);
  const std::string text(reinterpret_cast<const char*>(refused.payload.data()),
                         refused.payload.size());
  EXPECT_TRUE(text.starts_with("failed_precondition\n")) << text;
  EXPECT_NE(text.find("is not loaded here"), std::string::npos) << text;
  EXPECT_EQ(reply(7).header.kind, fabric::Kind::kReply);
  EXPECT_EQ(loop_->counters().refused, 1u);
}

TEST_F(LaneLoopTest, WrongMessagesAreRefusedOneByOne) {
  const Dispatch good = dispatch(5, 1, CombineMode::kPerWorker);
  const auto refusal = [&](const Header& header, const std::vector<std::byte>& payload) {
    EXPECT_TRUE(lanes_[5]->send(kWorker, header, payload));
    const Event event = reply(5);
    EXPECT_EQ(event.header.kind, fabric::Kind::kError);
    EXPECT_TRUE(event.header.answers(header));
    const std::string text(reinterpret_cast<const char*>(event.payload.data()),
                           event.payload.size());
    return text.substr(0, text.find('\n'));
  };
  Header stale = header(5, 1);
  stale.incarnation = kIncarnation - 1;
  EXPECT_EQ(refusal(stale, encode_dispatch(good)), "lease_lost");
  Header odd = header(5, 1);
  odd.kind = fabric::Kind::kReply;
  EXPECT_EQ(refusal(odd, encode_dispatch(good)), "invalid_argument");
  Dispatch other_shape = some_dispatch(5, 1, hidden_size() * 2, CombineMode::kPerWorker, 4, 2);
  EXPECT_EQ(refusal(header(5, 1), encode_dispatch(other_shape)), "invalid_argument");
  Dispatch other_type = good;
  other_type.dtype = DType::kF32;
  EXPECT_EQ(refusal(header(5, 1), encode_dispatch(other_type)), "invalid_argument");
  auto cut = encode_dispatch(good);
  cut.pop_back();
  EXPECT_EQ(refusal(header(5, 1), cut), "data_loss");
  send(5, header(5, 2), good);
  EXPECT_EQ(reply(5).payload, alone(good));
}

// What a router that is gone had sent is not computed.
TEST_F(LaneLoopTest, ALostRoutersDispatchesAreDropped) {
  pause();
  send(5, header(5, 1), dispatch(5, 1, CombineMode::kPerWorker));
  lanes_[5].reset();
  send(6, header(6, 1), dispatch(6, 1, CombineMode::kPerWorker));
  start();
  EXPECT_EQ(reply(6).header.kind, fabric::Kind::kReply);
  EXPECT_EQ(loop_->counters().dispatches, 1u);
}

// A long batch: a hello is answered while it runs, and what arrives meanwhile has its true arrival
// time, which lies before that batch's end.
TEST_F(LaneLoopTest, ListensWhileItComputes) {
  constexpr std::size_t kRows = 30'000;
  const Dispatch large = dispatch(5, kRows, CombineMode::kPerWorker);
  send(5, header(5, 1), large);
  auto newcomer = network_.make_router_lane(fabric::router_identity(8));
  ASSERT_TRUE(connect_now(*newcomer, port_->address(), kWorker, kIncarnation, generous()));
  EXPECT_EQ(lanes_[5]->wait(Clock::now()).type, Event::Type::kTimeout)
      << "the large batch was over before the hello was answered";
  send(6, header(6, 1), dispatch(6, 1, CombineMode::kPerWorker));
  const Event first = reply(5);
  const Event second = reply(6);
  EXPECT_LT(second.header.received_ns, first.header.finished_ns);
  EXPECT_GE(second.header.started_ns, first.header.finished_ns);
  EXPECT_GE(loop_->counters().queue_ns, second.header.started_ns - second.header.received_ns);
}

}  // namespace
}  // namespace moiety
