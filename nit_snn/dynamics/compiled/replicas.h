// What a control variate explains of the losses of a sample's replicas, which share no noise.
//
// `_explained` of `nit_snn.estimators.control_coefficients`: with G and D, the sums of g and d over the replicas,
//     G d_r - g_r d_r,  less the mean over the other replicas of what their baselines hold of it.
// Neurons of several samples lie side by side, (B * F,), and are looked at in blocks of `FEW`:
// as many as a processor reads ahead, and few enough for all replicas of them to stay in its cache.
#pragma once
#include "shared.h"

static const int FEW = 512;

struct Few {
    float x[FEW];
};

class Explained {
    // Sums over steps, by replica: g_r d_r, G d_r, g_r D; and G D.
    struct Products {
        Few own, with_all, of_own;
    };
    struct Sums {
        double own, with_all, of_own;
    };
    const i64 replicas_, inner_;
    std::vector<Products> products_;
    std::vector<Sums> sums_;  // (B, C)
    std::vector<double> whole_;  // (B,)
    Few all_g_, all_d_, both_;

  public:
    Explained(i64 replicas, i64 batch, i64 inner)
        : replicas_(replicas), inner_(inner), products_(replicas), sums_(batch * replicas),
          whole_(batch) {}

    void begin_block() {
        std::memset(&both_, 0, sizeof both_);
        std::memset(products_.data(), 0, products_.size() * sizeof(Products));
    }

    // One step: g of each replica, and d, `stride` from replica to replica.
    void step(const Few *g, const float *d, i64 stride, int length) {
        std::memset(&all_g_, 0, length * sizeof(float));
        std::memset(&all_d_, 0, length * sizeof(float));
        for (i64 r = 0; r < replicas_; ++r)
            for (int i = 0; i < length; ++i) {
                all_g_.x[i] += g[r].x[i];
                all_d_.x[i] += d[r * stride + i];
            }
        for (int i = 0; i < length; ++i) both_.x[i] += all_g_.x[i] * all_d_.x[i];
        for (i64 r = 0; r < replicas_; ++r) {
            const float *g_r = g[r].x, *d_r = d + r * stride;
            Products &p = products_[r];
            for (int i = 0; i < length; ++i) {
                p.own.x[i] += g_r[i] * d_r[i];
                p.with_all.x[i] += all_g_.x[i] * d_r[i];
                p.of_own.x[i] += g_r[i] * all_d_.x[i];
            }
        }
    }

    // The mean of g over the replicas other than that of `g`, in the last step.
    void mean_of_others(const float *g, float *to, int length) const {
        const float factor = 1.0f / (float)(replicas_ - 1);
        for (int i = 0; i < length; ++i) to[i] = (all_g_.x[i] - g[i]) * factor;
    }

    // After all steps of the block that begins at `place` of (B * F,).
    void end_block(i64 place, int length) {
        for (int i = 0; i < length;) {
            const i64 sample = (place + i) / inner_, rest = (sample + 1) * inner_ - place;
            const int end = rest < length ? (int)rest : length;
            whole_[sample] += sum_of(both_, i, end);
            for (i64 r = 0; r < replicas_; ++r) {
                Sums &sums = sums_[sample * replicas_ + r];
                sums.own += sum_of(products_[r].own, i, end);
                sums.with_all += sum_of(products_[r].with_all, i, end);
                sums.of_own += sum_of(products_[r].of_own, i, end);
            }
            i = end;
        }
    }

    // Adds what is explained of the losses of some samples to `rows`, (C, B).
    void tell(double *rows, i64 begin, i64 end) const {
        const double others = (double)replicas_ - 1.0, both = others - 1.0;
        const i64 batch = (i64)whole_.size();
        for (i64 sample = begin; sample < end; ++sample) {
            const Sums *sums = sums_.data() + sample * replicas_;
            double owns = 0.0;
            for (i64 r = 0; r < replicas_; ++r) owns += sums[r].own;
            for (i64 r = 0; r < replicas_; ++r) {
                const Sums &own = sums[r];
                double found = (own.with_all - own.own) / others;
                if (both > 0.0) {
                    double rest = whole_[sample] - own.with_all - own.of_own + own.own;
                    found -= (rest - (owns - own.own)) / (both * others);
                }
                rows[r * batch + sample] += found;
            }
        }
    }

  private:
    static double sum_of(const Few &few, int begin, int end) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int i = begin; i < end; ++i) sum += few.x[i];
        return sum;
    }
};
