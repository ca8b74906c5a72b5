from django.urls import path

from .views import Charges

urlpatterns = [path("v1/charges", Charges.as_view())]
